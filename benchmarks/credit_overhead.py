"""What credit costs: step time, memory and arithmetic.

    python benchmarks/credit_overhead.py [--pairs 40] [--rollout vllm] [--trainer gpu] [--threads N]
                                         [--output FILE]

Step time is measured inside one training run whose steps alternate between `credit=none` (the fastest uniform step:
no probe, no scoring pass), `credit=atrl` with a worker process for METIS, without one, and by the four heads that
`credit.heads=auto` finds in the shipped checkpoint. All see the same prompts, seeds and weights (the learning rate is
0), in an order that rotates, and the same rollouts: these are over before credit begins and their seconds scatter by
more than credit takes, so the first of a round draws them, all are charged them, and the updates follow each other
closely. The policy trains on a GPU where there is one, unless
`--trainer cpu` is given, in the precision of `trainer=gpu`; memory is then that of torch's allocator, else that of the
process. The last line is one JSON object, which is also written to `outputs/credit_overhead.json` unless `--output`
names another file; figures without `_inline`, `_worker` or `_four_heads` are of whichever `credit.workers=auto` takes
here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from device import add_options, facts, held_bytes, overrides, peak_bytes, torch_device, trainer_of

if TYPE_CHECKING:
    from rotation import Taken

SHAPES = {  # layers, width, heads, key-value heads, feed-forward width, vocabulary: the published configurations
    "3b": (36, 2048, 16, 2, 11008, 151936),
    "7b": (28, 3584, 28, 4, 18944, 152064),
    "32b": (64, 5120, 40, 8, 27648, 152064),
}
HEAD_WIDTH, PROMPT_TEXT = 128, 128
FOUR_HEADS = ((0, 1), (0, 2), (2, 2), (2, 3))
"""What `credit.heads=auto credit.auto_heads=4` finds in the shipped checkpoint."""
OUTPUT = Path("outputs/credit_overhead.json")


def main() -> None:
    """Measure, print and write."""
    from atrl.quiet import set_environment

    set_environment()  # as `train.py` does: how threads wait matters most of all
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40, help="rounds of the variants (default 40)")
    parser.add_argument("--rollout", choices=["vllm", "transformers"], default="vllm", help="sampler (default vllm)")
    parser.add_argument("--threads", type=int, help="of the training process (default: all cores)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"file for the JSON (default {OUTPUT})")
    add_options(parser)
    parser.add_argument("--memory", choices=["plain", "probe", "output_attentions"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    trainer = trainer_of(arguments.trainer)
    if arguments.memory:
        print(json.dumps(measure_memory(arguments.memory, torch_device(trainer))))
        return
    result = step_times(arguments, trainer)
    memory = {kind: in_a_fresh_process(kind, trainer) for kind in ("plain", "probe", "output_attentions")}
    result |= facts(trainer) | {
        "probe_memory_bytes": memory["probe"],
        "output_attentions_memory_bytes": memory["output_attentions"] - memory["plain"],
        "arithmetic_fraction": {name: arithmetic_fraction(name, 1024, 1024) for name in SHAPES},
        "arithmetic_fraction_kept": {name: arithmetic_fraction(name, 1024, 1024, kept=True) for name in SHAPES},
        "arithmetic_fraction_8_heads": {name: arithmetic_fraction(name, 1024, 1024, heads_read=8) for name in SHAPES},
        "arithmetic_fraction_grid": {
            name: {f"{images}x{tokens}": arithmetic_fraction(name, images, tokens)
                   for images in (1024, 2048, 4096) for tokens in (512, 1024, 2048, 4096)}
            for name in SHAPES
        },
        **clustering_milliseconds(),
    }  # fmt: skip
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def step_times(arguments: argparse.Namespace, trainer: str) -> dict:
    """Seconds of real training steps, variant by variant."""
    from rotation import train_in_rotation

    from atrl.credit.atrl import AtrlCredit
    from atrl.credit.background import useful_workers

    schemes = {"none": None, "worker": AtrlCredit(workers=1), "inline": AtrlCredit(workers=0)}
    schemes["four_heads"] = AtrlCredit(workers=useful_workers(), heads=FOUR_HEADS)
    rounds, rollout, threads = arguments.pairs, arguments.rollout, arguments.threads
    settings = overrides(rollout, trainer, share=arguments.engine_share, threads=threads)
    taken = train_in_rotation(schemes, rounds, settings)
    default = "worker" if useful_workers() else "inline"  # what credit.workers=auto takes
    result = {"rollout": rollout, "rounds": rounds, "threads": threads, "default": default}
    seconds = with_rollouts(taken)
    for name in ("worker", "inline", "four_heads"):
        shares = [own / base - 1 for own, base in zip(seconds[name], seconds["none"], strict=True)]
        suffix = "" if name == default else f"_{name}"
        result[f"step_overhead_fraction{suffix}"] = statistics.median(shares)
        result[f"step_overhead_ci95{suffix}"] = bootstrap(shares)
    credit = {name: statistics.median(taken.credit_seconds[name]) for name in schemes if name != "none"}
    return result | {
        "step_seconds": {name: statistics.median(seconds[name]) for name in schemes},
        "credit_seconds": credit,
        "metis_seconds_hidden": credit["inline"] - credit["worker"],
    }


def with_rollouts(taken: Taken) -> dict[str, list[float]]:
    """Seconds of each variant's steps with its round's rollouts, whichever variant drew them."""
    own, drawn = taken.rollout_seconds, [sum(round_) for round_ in zip(*taken.rollout_seconds.values(), strict=True)]
    return {
        name: [step - mine + whole for step, mine, whole in zip(steps, own[name], drawn, strict=True)]
        for name, steps in taken.seconds.items()
    }


def bootstrap(values: list[float], draws: int = 10000) -> list[float]:
    """A 95 % interval of the median, by resampling."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(draws))
    return [medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]]


def in_a_fresh_process(kind: str, trainer: str) -> int:
    """Peak bytes that one forward pass adds, in a process of its own."""
    command = [sys.executable, __file__, "--memory", kind, "--trainer", trainer]
    # Each tensor mapped by itself and given back when it is freed: then what the process holds is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(kind: str, device: str, tokens: int = 2048, images: int = 1024, response: int = 896) -> int:
    """Bytes that one forward pass of 4 rows, through 4 layers of 8 heads, takes; of a probe's, what the probe takes.

    In float32 on either device.
    """
    import torch

    from atrl.credit.attention import AttentionRequest
    from atrl.credit.probe import AttentionProbe
    from atrl.credit.regions import padded_regions
    from atrl.types import Experience

    torch.manual_seed(0)
    model = random_model("eager" if kind == "output_attentions" else "sdpa").to(device)
    ids = torch.randint(0, 100, (4, tokens)).to(device)
    ids[:, 8 : 8 + images] = model.config.image_token_id
    mask = torch.ones_like(ids)
    batch = Experience(ids, mask, mask[:, -response:].bool(), [{}] * 4, torch.zeros(4, response).to(device))
    embeddings = torch.randn(4, tokens, model.config.get_text_config().hidden_size).to(device)
    request = AttentionRequest()
    text = model.model.language_model
    with torch.no_grad():
        text(inputs_embeds=embeddings[:, :64])  # what the libraries allocate once
        before = reset_peak(device)
        if kind != "probe":
            text(inputs_embeds=embeddings, output_attentions=kind == "output_attentions")
            return peak(device) - before
        extra = watch_reading(device)
        probe = AttentionProbe(model, [request])
        regions = padded_regions(batch, (model.config.image_token_id,))
        with probe.capture_regions({"predicting": regions}) as recorder:
            text(inputs_embeds=embeddings)
        held = reset_peak(device)
        capture = recorder.results()[request]
        extra.append(peak(device) - held)
    kept = [capture.total, capture.peak, capture.image, capture.edges.targets, capture.edges.strengths]
    return max(extra) + sum(tensor.numel() * tensor.element_size() for tensor in kept)


def watch_reading(device: str) -> list[int]:
    """Bytes by which each reading of a layer raises what is held: the layers' own peak would hide it."""
    from atrl.credit.attention import AttentionReader

    original, extra = AttentionReader.read_attention, []

    def read(*arguments, **options) -> None:
        held = reset_peak(device)
        original(*arguments, **options)
        extra.append(peak(device) - held)

    AttentionReader.read_attention = read
    return extra


def reset_peak(device: str) -> int:
    """Forget the peak and return the bytes that are held: by torch of the GPU, else by the process; Linux only."""
    if device == "cuda":
        return held_bytes(device)
    # A child starts with its parent's peak.
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def peak(device: str) -> int:
    """The most bytes that were held since."""
    return peak_bytes(device) if device == "cuda" else status_bytes("VmHWM")


def status_bytes(field: str) -> int:
    """A size that the kernel states of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def random_model(kernel: str):
    """Qwen2.5-VL with a language half of 4 layers of 8 heads of 32, and next to no vision tower."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8}
    text |= {"num_key_value_heads": 2, "vocab_size": 200, "max_position_embeddings": 4096}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 256}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=150, video_token_id=151)
    return Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=kernel).eval()


def arithmetic_fraction(
    name: str, images: int, tokens: int, *, kept: bool = False, heads_read: int | None = None
) -> float:
    """Operations of the probe over those of the training pass (forward and backward) of one rollout.

    A multiplication and an addition count as two operations; the backward pass as two forward passes. The vision
    tower, the rollout and the optimizer are left out, all of which would make the share smaller. Every column is looked
    at for the log-sum-exp of a row, unless the model's kernel `kept` it, and the picture's then for their mass. Edges
    between response tokens, which `credit=atrl` doesn't read unless asked, would take that once more. `heads_read` is
    how many heads are read, None for all.
    """
    layers, width, heads, kv_heads, hidden, vocabulary = SHAPES[name]
    length = images + PROMPT_TEXT + tokens
    projections = 2 * width * (2 * heads + 2 * kv_heads) * HEAD_WIDTH + 6 * width * hidden
    attention = 4 * heads * HEAD_WIDTH * length / 2  # causal: half the columns on average
    forward = layers * length * (projections + attention) + 2 * tokens * width * vocabulary
    looked_at = tokens * (images if kept else length + images)
    scores = 2 * HEAD_WIDTH * looked_at
    softmax = 5 * looked_at  # scale, mask, maximum, exponential, sum and division, to the nearest round number
    reductions = 6 * tokens * images  # sinks, sum, maxima
    read = layers * heads if heads_read is None else heads_read
    return read * (scores + softmax + reductions) / (3 * forward)


def clustering_milliseconds(tokens: int = 1000, images: int = 1000, repeats: int = 15) -> dict[str, float]:
    """Median times for one response of 1,000 tokens: METIS alone, and graph, clusters and weights together."""
    from clusters import random_rows

    from atrl.credit import metis
    from atrl.credit.atrl import AtrlCredit
    from atrl.credit.clusters import token_graph, weigh_all

    rows, settings = random_rows(tokens, images), AtrlCredit().settings
    graph = token_graph(rows, settings)

    def median(work) -> float:
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return 1000 * statistics.median(seconds)

    return {
        "metis_milliseconds_per_1000_tokens": median(lambda: metis.partition(*graph, num_clusters=8)),
        "clustering_milliseconds_per_1000_tokens": median(lambda: weigh_all([rows], settings)),
    }


if __name__ == "__main__":
    main()
