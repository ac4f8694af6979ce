"""Responses that have their prompt's keys and values in common, against a copy for each (`rollout/continuing.py`).

    python benchmarks/continuing.py [--repeats 7] [--prompts 16 8 8] [--lengths 39 557 1597] [--threads 1]

The tiny model draws 8 responses of exactly 64 tokens to each prompt, by transformers, prefill included; a prompt is a
problem of the demo with a random text before it that brings it to its length. Kinds take turns within a process;
seconds are the best of `--repeats`, peaks those of a process that draws in one way only. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

from credit_overhead import status_bytes
from timing import best_seconds

GROUP_SIZE, TOKENS = 8, 64
KINDS = ("copies", "common")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="calls, of which the best counts (default 7)")
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 8, 8], help="how many (default 16 8 8)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[39, 557, 1597], help="tokens of each of them")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--peak", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if len(arguments.prompts) != len(arguments.lengths):
        parser.error(f"--prompts has {len(arguments.prompts)} numbers and --lengths {len(arguments.lengths)}")
    from atrl.quiet import set_environment

    set_environment()
    shapes = list(zip(arguments.prompts, arguments.lengths, strict=True))
    if arguments.peak:
        Draws(*shapes[0]).draw(arguments.peak)
        print(status_bytes("VmHWM"))  # what getrusage says is at least the parent's peak
        return
    found = []
    for count, length in shapes:
        draws = Draws(count, length)
        seconds = best_seconds({kind: partial(draws.draw, kind) for kind in KINDS}, arguments.repeats)
        peaks = {kind: peak_bytes(kind, count, length) for kind in KINDS}
        found.append({"prompts": count, "prompt_tokens": length, "seconds": seconds, "peak_bytes": peaks})
        print(found[-1], flush=True)
    print(json.dumps({"threads": arguments.threads, "group_size": GROUP_SIZE, "tokens": TOKENS, "shapes": found}))


def peak_bytes(kind: str, count: int, length: int) -> int:
    """Of a fresh process that draws once."""
    command = [sys.executable, __file__, "--peak", kind, "--prompts", str(count), "--lengths", str(length)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


class Draws:
    """Responses to `count` prompts of `length` tokens each, in either way."""

    def __init__(self, count: int, length: int) -> None:
        import torch

        from atrl.data.geometry import GeometryProblems
        from atrl.data.prompts import PromptBuilder
        from atrl.models.load import PretrainedModel
        from atrl.rollout.settings import RolloutSettings
        from atrl.rollout.transformers import TransformersSampler, end_token_ids

        loaded, sampler = PretrainedModel(path="tiny").load(Path()), TransformersSampler()
        handle = RolloutSettings(sampler=sampler).handle(loaded, [])
        # A response that can't end has all of its tokens.
        sampler.start(replace(handle, banned_ids=(*handle.banned_ids, *end_token_ids(handle))))
        builder, generator = PromptBuilder(processor=loaded.processor), torch.Generator().manual_seed(0)
        built = [builder.build(problem) for problem in GeometryProblems(train_size=count).load("train")]
        self._prompts = []
        for prompt in built:
            text = torch.randint(256, (max(0, length - len(prompt.token_ids)),), generator=generator).tolist()
            self._prompts.append(replace(prompt, token_ids=text + prompt.token_ids))
        assert max(len(prompt.token_ids) for prompt in self._prompts) == length, f"a problem has over {length} tokens"
        self._sampler = sampler

    def draw(self, kind: str) -> None:
        """One call."""
        from atrl.rollout import transformers
        from atrl.rollout.base import Sampling

        sampling = Sampling(group_size=GROUP_SIZE, max_response_tokens=TOKENS)
        with patch.object(transformers, "continue_prompts", copies) if kind == "copies" else nullcontext():
            groups = self._sampler.generate(self._prompts, sampling, seed="0")
        assert all(len(rollout.token_ids) == TOKENS for group in groups for rollout in group.rollouts)


def copies(model, cache, mask, group_size: int):
    """Each response with a copy of its prompt's keys and values."""
    from atrl.rollout.continuing import RepeatedPrompts

    return RepeatedPrompts(cache, mask, group_size)


if __name__ == "__main__":
    main()
