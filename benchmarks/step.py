"""A full training step against TRL's `GRPOTrainer`: the same tiny model, problems, tokens and loss, taking turns.

    python benchmarks/step.py [--rounds 30] [--rollout transformers] [--trainer gpu] [--threads N]

Needs TRL: `pip install "trl>=1.16" accelerate`. A step is 16 prompts × 8 rollouts of exactly 64 tokens (the ends of
an answer are kept from being sampled), with all that belongs to it: pre-processing, rollouts, rewards, update, sync.
Credit is off, because TRL has none. Both run in one process, a step of the one after a step of the other, and which
comes first alternates. With `--rollout vllm` TRL still generates by transformers: it admits no vLLM of the CPU build.
Before that, untimed, both work out loss and gradient of the same rollouts. Peaks of memory are of a process of its
own each.

Both train on a GPU where there is one, unless `--trainer cpu` is given: on the first, under autocast to bfloat16 as
`trainer=gpu` says, also while they sample; memory is then that of torch's allocator, in which an engine of `--rollout
vllm` has all of its share. Losses and gradients are compared in float32 on either device. The last line is one JSON
object:

- `speedup_vs_trl`: the median over rounds of TRL's seconds over atrl's for a step of as many tokens, with
  `speedup_ci95`, its 95 % bootstrap interval; `memory_ratio_vs_trl`: atrl's peak over TRL's.
- `phases`: atrl's median seconds by phase.
- `loss_difference` and `gradient_difference`: between the two, relative; `gradient_cosine`: over all parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence

from device import add_options, facts, trainer_of, use_one_gpu

WARM_UP = 2
"""Rounds that are not counted: the first calls of kernels and of the engine."""
MEMORY_STEPS = 3
LEARNING_RATE = 1e-5


def main() -> None:
    """Run the parts, each in a process of its own, or the one that is named."""
    from atrl.quiet import set_environment

    set_environment()  # as `train.py` does: how threads wait matters most of all
    arguments = parse()
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    use_one_gpu()
    arguments.trainer = trainer_of(arguments.trainer)
    if arguments.part:
        from step_agreement import agreement
        from step_sides import PARTS

        print(json.dumps((PARTS | {"agreement": agreement})[arguments.part](arguments)))
        return
    found: dict[str, object] = {}
    for part in ("agreement", "times", "memory_atrl", "memory_trl"):
        print(f"{part} …", file=sys.stderr, flush=True)
        found |= in_a_fresh_process(part)
    found["memory_ratio_vs_trl"] = round(found["memory_atrl_bytes"] / found["memory_trl_bytes"], 3)
    threads = arguments.threads or os.environ.get("OMP_NUM_THREADS")
    found |= facts(arguments.trainer)
    print(json.dumps(found | {"rollout": arguments.rollout, "rounds": arguments.rounds, "threads": threads,
                              "load_average": round(os.getloadavg()[0], 1)}))  # fmt: skip


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="steps of each that count (default 30)")
    parser.add_argument("--rollout", choices=["transformers", "vllm"], default="transformers", help="atrl's sampler")
    parser.add_argument("--prompts", type=int, default=16, help="of a step (default 16)")
    parser.add_argument("--group-size", type=int, default=8, help="rollouts of a prompt (default 8)")
    parser.add_argument("--tokens", type=int, default=64, help="of every response (default 64)")
    parser.add_argument("--micro-batch", type=int, default=64, help="rollouts in a pass, of both (default 64)")
    parser.add_argument("--threads", type=int, help="torch threads (default: what OMP_NUM_THREADS gives)")
    parser.add_argument("--model", default="tiny", help="a checkpoint, as model.path (default tiny)")
    add_options(parser)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {arguments.rounds}: the interval is that of their median")
    return arguments


def in_a_fresh_process(part: str) -> dict[str, object]:
    """What the part's last line says."""
    # TRL takes its steps in a thread, for which the C library would otherwise make a heap of its own, and a slower one.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    if part.startswith("memory"):  # what is freed goes back at once, so that the peak is that of memory in use
        environment["MALLOC_MMAP_THRESHOLD_"] = "131072"
    command = [sys.executable, *sys.argv, "--part", part]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def speedup(atrl: Sequence[float], trl: Sequence[float]) -> dict[str, object]:
    """The median of the rounds' ratios, and its interval: rounds are drawn again, 10,000 times."""
    ratios = [other / own for own, other in zip(atrl, trl, strict=True)]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(10_000))
    return {
        "speedup_vs_trl": round(statistics.median(ratios), 3),
        "speedup_ci95": [round(medians[250], 3), round(medians[9749], 3)],
        "speedup_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


if __name__ == "__main__":
    main()
