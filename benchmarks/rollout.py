"""Speed of the samplers: `python benchmarks/rollout.py vllm` (or `transformers`, or `vllm-compiled`).

Prints one JSON line. Every call gets new pictures, as in training, and random weights, under which few responses end
early. The first call is reported apart. CPU seconds say how fast it would be if nothing else used the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Measure one sampler in a fresh process."""
    arguments = _arguments()
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from atrl.data.geometry import GeometryProblems
    from atrl.data.prompts import PromptBuilder
    from atrl.data.templates import banned_token_ids
    from atrl.models import scratch
    from atrl.rollout.base import ModelHandle, Sampling

    sampler = _sampler(arguments.sampler)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = scratch.build(Path(temporary))
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        builder = PromptBuilder(processor=processor)
        problems = GeometryProblems(train_size=arguments.prompts * arguments.calls).load("train")
        prompts = [builder.build(problem) for problem in problems]
        started = time.perf_counter()
        sampler.start(
            ModelHandle(
                folder=folder, model=model, tokenizer=processor.tokenizer, banned_ids=banned_token_ids(processor),
                max_prompt_tokens=256, max_response_tokens=arguments.tokens, max_images=1,
            )
        )  # fmt: skip
        start_seconds = time.perf_counter() - started
        sampling = Sampling(group_size=arguments.group_size, max_response_tokens=arguments.tokens)
        calls = []
        for call in range(arguments.calls):
            batch = prompts[call * arguments.prompts : (call + 1) * arguments.prompts]
            calls.append(_one_call(sampler, model, batch, sampling, call))
        sampler.close()
    first, *rest = calls
    print(
        json.dumps(
            {
                "sampler": arguments.sampler,
                "threads": torch.get_num_threads(),
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
                "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
                "start_seconds": round(start_seconds, 2),
                "first_call_tokens_per_second": round(first["tokens"] / first["seconds"]),
                "tokens_per_second": round(statistics.median(c["tokens"] / c["seconds"] for c in rest)),
                "tokens_per_cpu_second": round(statistics.median(c["tokens"] / c["cpu"] for c in rest)),
                "sync_seconds": round(statistics.median(c["sync"] for c in rest), 4),
                "load_average": round(os.getloadavg()[0], 1),
            }
        )
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sampler", choices=["vllm", "vllm-compiled", "transformers"])
    parser.add_argument("--calls", type=int, default=8, help="calls to generate, the first apart (default 8)")
    parser.add_argument("--prompts", type=int, default=16, help="prompts a call (default 16)")
    parser.add_argument("--group-size", type=int, default=8, help="responses a prompt (default 8)")
    parser.add_argument("--tokens", type=int, default=64, help="longest response (default 64)")
    parser.add_argument("--threads", type=int, help="torch threads (default: what OMP_NUM_THREADS gives)")
    arguments = parser.parse_args()
    if arguments.calls < 2:
        parser.error("--calls must be at least 2: the first is reported apart")
    return arguments


def _sampler(name: str):
    from atrl.rollout.transformers import TransformersSampler
    from atrl.rollout.vllm import VllmSampler

    return TransformersSampler() if name == "transformers" else VllmSampler(enforce_eager=name == "vllm")


def _one_call(sampler, model, prompts, sampling, call: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    groups = sampler.generate(prompts, sampling, seed=f"0/{call}")
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    wall = time.perf_counter()
    sampler.update_weights(model.named_parameters(), version=call + 1)
    return {
        "tokens": sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts),
        "seconds": seconds,
        "cpu": cpu_seconds,
        "sync": time.perf_counter() - wall,
    }


if __name__ == "__main__":
    main()
