"""Micro-batches by a budget of tokens: padding, pictures encoded again, and seconds, against micro-batches of one size.

    python benchmarks/micro_batches.py [--rounds 5] [--budgets 2000 4000 8000] [--sizes 16 32 64] [--threads N]

Forward and backward passes of the tiny model over 16 prompts × 8 random responses, whose lengths are those of a log-
normal distribution, cut at 64 tokens. `by_group` is optimizer.micro_batch_tokens, which keeps the rollouts of a group
together; `by_length` orders all rollouts by length alone, so that a group's are spread and its picture is encoded in
several micro-batches; `size` is optimizer.micro_batch_size. In all of them a prompt is run once for the responses of
its micro-batch; in `apart` with each (optimizer.share_prompts=false). `cells` are rows × columns of all that is run,
of which `padding` is the share that no token fills; `largest` are those of the largest micro-batch, which memory goes
by. The kinds take turns; seconds are this process's own processor time, the median. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

PROMPTS, GROUP_SIZE, LONGEST = 16, 8, 64
TYPICAL, SPREAD = 24.0, 0.6
"""Median of the responses' lengths, and the deviation of their logarithm."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="passes of each kind that count (default 5)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[2000, 4000, 8000], help="default 2000 4000 8000")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64], help="default 16 32 64")
    parser.add_argument("--threads", type=int, help="torch threads (default: what OMP_NUM_THREADS gives)")
    arguments = parser.parse_args()
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    import torch

    from atrl.models.load import PretrainedModel
    from atrl.splitting import EvenSplit, TokenBudgetSplit

    class ByLength(TokenBudgetSplit):
        def order(self, experience):
            lengths = experience.attention_mask.sum(dim=1)
            return lengths.sort(descending=True, stable=True).indices

    loaded = PretrainedModel(path="tiny").load(Path())
    batch = experience(loaded)
    splits = {f"apart_{size}": (EvenSplit(size=size), False) for size in arguments.sizes}
    splits |= {f"size_{size}": (EvenSplit(size=size), True) for size in arguments.sizes}
    for budget in arguments.budgets:
        splits |= {f"by_group_{budget}": (TokenBudgetSplit(max_tokens=budget, share_prompts=True), True)}
        splits |= {f"by_length_{budget}": (ByLength(max_tokens=budget, share_prompts=True), True)}
    seconds: dict[str, list[float]] = {name: [] for name in splits}
    for round_ in range(arguments.rounds + 1):  # the first calls of kernels are not counted
        for name, (split, share) in splits.items():
            taken = update(loaded.model, batch, split, share)
            seconds[name] += [taken] if round_ else []
    kinds = {name: cut(batch, split, share) | {"seconds": round(statistics.median(seconds[name]), 3)}
             for name, (split, share) in splits.items()}  # fmt: skip
    for name, kind in kinds.items():
        print(f"{name:16}", kind)
    print(json.dumps({"tokens": int(batch.attention_mask.sum()), "threads": torch.get_num_threads(),
                      "load_average": round(os.getloadavg()[0], 1), **kinds}))  # fmt: skip


def experience(loaded, typical: float = TYPICAL, spread: float = SPREAD):
    """The batch, with responses of a log-normal number of tokens, at most `LONGEST`; the same each time."""
    import torch

    from atrl.data.geometry import GeometryProblems
    from atrl.data.prompts import PromptBuilder
    from atrl.experience import build_experience
    from atrl.types import Rollout, RolloutGroup

    builder, generator = PromptBuilder(processor=loaded.processor), torch.Generator().manual_seed(0)
    groups = []
    for problem in GeometryProblems(train_size=PROMPTS).load("train"):
        drawn = typical * torch.exp(spread * torch.randn(GROUP_SIZE, generator=generator))
        lengths = drawn.round().clamp(1, LONGEST).int().tolist()
        ids = [torch.randint(256, (length,), generator=generator).tolist() for length in lengths]
        rollouts = [Rollout(row, [0.0] * len(row), True) for row in ids]
        groups.append(RolloutGroup(builder.build(problem), rollouts, [""] * GROUP_SIZE, policy_version=0))
    return build_experience(groups, pad_id=0)


def update(model, batch, split, share: bool) -> float:
    """Seconds of forward and backward passes over the whole batch."""
    from atrl.forward import ForwardPass

    forward = ForwardPass(temperature=1.0, banned_ids=(), chunk=1024, share_prompts=share)
    model.zero_grad()
    start = time.process_time()
    ordered = batch.rows(split.order(batch))
    for rows in split.slices(ordered):
        logprobs, _ = forward.logprobs(model, split.piece(ordered, rows))
        (-logprobs.sum()).backward()
    return time.process_time() - start


def cut(batch, split, share: bool) -> dict[str, object]:
    """How many micro-batches, cells and encodings `split` makes of `batch`."""
    from atrl.models.prompt_states import distinct_prompts

    ordered = batch.rows(split.order(batch))
    pieces = [split.piece(ordered, rows) for rows in split.slices(ordered)]
    cells, tokens = [], 0
    for piece in pieces:
        first, _ = distinct_prompts(piece.input_ids[:, : piece.prompt_length], piece.pixels)
        run = first if share else range(piece.size)
        cells.append(len(run) * piece.prompt_length + piece.response_mask.numel())
        tokens += int(piece.attention_mask[list(run), : piece.prompt_length].sum() + piece.response_mask.sum())
    return {
        "micro_batches": len(pieces),
        "cells": sum(cells),
        "padding": round(1 - tokens / sum(cells), 3),
        "largest": max(cells),
        "pictures_encoded": sum(len({id(entry) for entry in piece.pixels}) for piece in pieces),
    }


if __name__ == "__main__":
    main()
