"""Rollouts in numbers: speed of both samplers, of the sync and of pre-processing, agreement, and memory over a run.

    python benchmarks/rollout.py [--prompts 16 --group-size 8] [--calls 8] [--steps 200] [--threads N] [--compiled]
                                 [--trainer gpu] [--dtype bfloat16]

Each part runs in a process of its own. The policy is on a GPU where there is one, unless `--trainer cpu` is given, and
the last part trains as `trainer=gpu` says, under autocast to bfloat16. All else is in float32, or with `--dtype
bfloat16` the engine's weights are in that, and the policy samples and scores under autocast, as it does in a run of
`trainer=gpu`. The last line is one JSON object:

- `vllm_tokens_per_second`, `transformers_tokens_per_second`: the median over calls of one batch (16 × 8 = 128
  rollouts), each of other pictures, the first left out; `vllm_share` is the one over the other. `…_per_cpu_second` says
  how fast it would be if nothing else used the cores; a GPU's work is none of theirs, so it is left out there.
- `sync_seconds`: handing the weights to vLLM, caches dropped, the median.
- `logprob_max_difference`: between sampler and trainer, the largest of any token, each call after a sync of weights
  that were changed at random.
- `preprocess_ms_per_image`: making one prompt and its tensors for a group that shares them, and `…_unshared`: for each
  of its responses again.
- `memory_slope_bytes_per_step` and `memory_slope_ci95`: of resident memory over the steps of a real training run with
  vLLM, the first quarter left out. On a GPU `device_…` also of what torch holds of it after a step, the engine's share
  included, and `device_peak_bytes`, the most that it held.
- `training_logprob_max_difference`: the largest of any token of that run; under autocast that is what bfloat16 rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from device import add_options, facts, torch_device, trainer_of, wait_for_device
from slope import BLOCKS


def main() -> None:
    """Run the parts one after the other, or the one that is named."""
    from atrl.quiet import set_environment

    set_environment()  # as `train.py` does: how threads wait matters most of all
    arguments = _arguments()
    arguments.trainer = trainer_of(arguments.trainer)
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments)))
        return
    result: dict[str, object] = {}
    for part in PARTS:
        print(f"{part} …", file=sys.stderr, flush=True)
        result |= _in_a_fresh_process(part)
    result["vllm_share"] = round(result["vllm_tokens_per_second"] / result["transformers_tokens_per_second"], 3)
    threads = arguments.threads or os.environ.get("OMP_NUM_THREADS")
    result |= facts(arguments.trainer) | {"dtype": arguments.dtype}
    print(json.dumps(result | {"threads": threads, "load_average": round(os.getloadavg()[0], 1)}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), help="only this one, in this process")
    parser.add_argument("--model", default="tiny", help="a checkpoint, as model.path (default tiny)")
    parser.add_argument("--calls", type=int, default=8, help="calls to generate, the first left out (default 8)")
    parser.add_argument("--prompts", type=int, default=16, help="prompts a call and a step (default 16)")
    parser.add_argument("--group-size", type=int, default=8, help="responses a prompt (default 8)")
    parser.add_argument("--tokens", type=int, default=64, help="longest response (default 64)")
    parser.add_argument("--steps", type=int, default=200, help="training steps over which memory is looked at")
    parser.add_argument("--threads", type=int, help="torch threads (default: what OMP_NUM_THREADS gives)")
    parser.add_argument("--compiled", action="store_true", help="vLLM with enforce_eager=False")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of rollouts")
    add_options(parser)
    arguments = parser.parse_args()
    if arguments.calls < 2:
        parser.error("--calls must be at least 2: the first is left out")
    if arguments.steps < 2 * BLOCKS:
        parser.error(f"--steps must be at least {2 * BLOCKS}: the slope is that of {BLOCKS} blocks")
    return arguments


def _in_a_fresh_process(part: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, *sys.argv, "--part", part], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def sampler_part(arguments: argparse.Namespace, name: str) -> dict[str, object]:
    """Speed, sync and agreement of one sampler."""
    import torch

    from atrl.rollout.settings import RolloutSettings
    from atrl.rollout.transformers import TransformersSampler

    loaded = _load(arguments)
    sampler = _engine(arguments) if name == "vllm" else TransformersSampler()
    settings = RolloutSettings(
        sampler=sampler, group_size=arguments.group_size, max_response_tokens=arguments.tokens, max_prompt_tokens=256
    )
    prompts = _prompts(arguments, loaded, arguments.calls)
    handle = settings.handle(loaded, [])
    sampler.start(handle)
    loaded.model.to(torch_device(arguments.trainer))  # after the engine's start, as in a run
    generator = torch.Generator().manual_seed(0)
    calls = []
    for call in range(arguments.calls):
        batch = prompts[call * arguments.prompts : (call + 1) * arguments.prompts]
        with torch.autocast(loaded.model.device.type, torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
            calls.append(_one_call(sampler, handle, batch, settings.sampling, call, generator))
    sampler.close()
    _, *rest = calls
    found: dict[str, object] = {
        f"{name}_tokens_per_second": round(statistics.median(c["tokens"] / c["seconds"] for c in rest)),
    }
    if arguments.trainer == "cpu":
        found[f"{name}_tokens_per_cpu_second"] = round(statistics.median(c["tokens"] / c["cpu"] for c in rest))
    if name == "vllm":
        found["sync_seconds"] = round(statistics.median(c["sync"] for c in rest), 4)
        found["logprob_max_difference"] = max(c["difference"] for c in calls)
    return found


def _one_call(sampler, handle, prompts, sampling, call: int, generator) -> dict[str, float]:
    """New weights, a sync, a batch of rollouts, and the trainer's log-probs of them; only the middle two are timed."""
    import torch

    from atrl.weight_sync import named_parameters

    with torch.no_grad():
        for parameter in handle.model.parameters():  # as far as some steps of training move them
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise, alpha=0.01 * float(parameter.std()) if parameter.numel() > 1 else 0.0)
    wait_for_device()
    wall = time.perf_counter()
    sampler.update_weights(named_parameters(handle.model), version=call)
    wait_for_device()
    sync = time.perf_counter() - wall
    wall, cpu = time.perf_counter(), time.process_time()
    groups = sampler.generate(prompts, sampling, seed=f"0/{call}")
    wait_for_device()
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "tokens": sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts),
        "seconds": seconds,
        "cpu": cpu_seconds,
        "sync": sync,
        "difference": _largest_difference(handle, groups),
    }


def _largest_difference(handle, groups) -> float:
    import torch

    from atrl.experience import build_experience, micro_batches
    from atrl.forward import ForwardPass

    experience = build_experience(groups, pad_id=0, device=handle.model.device)
    forward = ForwardPass(temperature=1.0, banned_ids=handle.banned_ids)
    largest = 0.0
    with torch.no_grad():
        for rows in micro_batches(experience.size, 64):
            batch = experience.rows(rows)
            logprobs, _ = forward.logprobs(handle.model, batch)
            difference = (logprobs - batch.sampler_logprobs)[batch.response_mask].abs().max()
            largest = max(largest, float(difference))
    return largest


def preprocess_part(arguments: argparse.Namespace) -> dict[str, object]:
    """Milliseconds to make one picture's prompt ready: once a group, and once a response."""
    loaded = _load(arguments)
    problems, builder = _problems(arguments, arguments.calls), _builder(loaded)
    shared, unshared = [], []
    for call in range(arguments.calls):
        batch = problems[call * arguments.prompts : (call + 1) * arguments.prompts]
        for times, found in ((1, shared), (arguments.group_size, unshared)):
            wall = time.perf_counter()
            for problem in batch:
                for _ in range(times):
                    builder.build(problem)
            found.append(1000 * (time.perf_counter() - wall) / len(batch))
    return {
        "preprocess_ms_per_image": round(statistics.median(shared[1:]), 3),
        "preprocess_ms_per_image_unshared": round(statistics.median(unshared[1:]), 3),
    }


def memory_part(arguments: argparse.Namespace) -> dict[str, object]:
    """Over the steps of a real run."""
    from rollout_memory import memory_over_steps

    return memory_over_steps(arguments)


def _load(arguments: argparse.Namespace):
    import torch

    from atrl.models.load import PretrainedModel

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    loaded = PretrainedModel(path=arguments.model).load(Path())
    loaded.model.eval()
    return loaded


def _engine(arguments: argparse.Namespace):
    from atrl.rollout.vllm import VllmSampler

    share = {} if arguments.engine_share is None else {"gpu_memory_utilization": arguments.engine_share}
    return VllmSampler(enforce_eager=not arguments.compiled, dtype=arguments.dtype, **share)


def _problems(arguments: argparse.Namespace, calls: int):
    from atrl.data.geometry import GeometryProblems

    return GeometryProblems(train_size=arguments.prompts * calls).load("train")


def _builder(loaded):
    from atrl.data.prompts import PromptBuilder

    return PromptBuilder(processor=loaded.processor, max_prompt_tokens=256)


def _prompts(arguments: argparse.Namespace, loaded, calls: int):
    builder = _builder(loaded)
    return [builder.build(problem) for problem in _problems(arguments, calls)]


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, object]]] = {
    "vllm": lambda arguments: sampler_part(arguments, "vllm"),
    "transformers": lambda arguments: sampler_part(arguments, "transformers"),
    "preprocess": preprocess_part,
    "memory": memory_part,
}


if __name__ == "__main__":
    main()
