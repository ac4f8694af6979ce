"""Cutting a batch into the pieces that go through the model one after the other, and joining what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from atrl import parallel
from atrl.experience import micro_batches
from atrl.types import Experience


class Split(Protocol):
    """Consecutive slices of a batch's rollouts, and the batch that each of them is to the model."""

    def order(self, experience: Experience) -> Int[Tensor, "rollout"]:
        """The rollouts in the order that `slices` cuts: as they come."""
        return torch.arange(experience.size, device=experience.input_ids.device)

    def slices(self, experience: Experience) -> list[slice]: ...
    def piece(self, experience: Experience, rows: slice) -> Experience: ...


@dataclass(frozen=True, kw_only=True)
class EvenSplit(Split):
    """`size` rollouts at a time, padded like the whole batch."""

    size: int

    def slices(self, experience: Experience) -> list[slice]:
        """The last may be shorter."""
        return list(micro_batches(experience.size, self.size))

    def piece(self, experience: Experience, rows: slice) -> Experience:
        """These rollouts, padding kept."""
        return experience.rows(rows)


@dataclass(frozen=True, kw_only=True)
class GroupSplit(Split):
    """One prompt's rollouts at a time, padded for themselves.

    The kernels of a matrix product depend on its shape, and so do the last bits of its result. A group that always has
    the shapes of its own gets the same bits in whatever batch, micro-batch size or number of processes.
    """

    def slices(self, experience: Experience) -> list[slice]:
        """A slice a group."""
        return [slice(members[0], members[-1] + 1) for members in groups(experience)]

    def piece(self, experience: Experience, rows: slice) -> Experience:
        """These rollouts, without the columns that are padding to all of them."""
        return trimmed(experience.rows(rows))


@dataclass(frozen=True, kw_only=True)
class TokenBudgetSplit(Split):
    """As many rollouts at a time as stay within `max_tokens`, padding included, each piece padded for itself.

    Rollouts of like length come together, so that little of a piece is padding: groups in the order of their longest
    rollout, and the rollouts of a group by length. Groups stay whole as far as the budget lets them, because each piece
    encodes the pictures of its rollouts again. The longest come first: what does not fit is known at once.

    Args:
        max_tokens: rollouts times columns of a piece; with `share_prompts` prompts times columns of prompts, and
            rollouts times columns of responses. A rollout that is longer has a piece of its own.
        share_prompts: whether each prompt of a piece is run once.
        in_step: whether all ranks must run equally many pieces, as where they share the model's parameters.
    """

    max_tokens: int
    share_prompts: bool = False
    in_step: bool = False

    def order(self, experience: Experience) -> Int[Tensor, "rollout"]:
        """Longest first; of equal ones as they come."""
        lengths = experience.attention_mask.sum(dim=1).tolist()
        by_length = [sorted(members, key=lambda row: -lengths[row]) for members in groups(experience)]
        by_length.sort(key=lambda members: -lengths[members[0]])
        order = [row for members in by_length for row in members]
        return torch.tensor(order, device=experience.input_ids.device)

    def slices(self, experience: Experience) -> list[slice]:
        """Of rollouts that are in `order`; where ranks must agree, the largest are halved until they do."""
        prompts = (experience.attention_mask.sum(dim=1) - experience.response_mask.sum(dim=1)).tolist()
        responses = experience.response_mask.sum(dim=1).tolist()

        prompt_of = [number for number, members in enumerate(groups(experience)) for _ in members]

        def tokens(start: int, stop: int) -> int:
            rollouts = stop - start
            run = len(set(prompt_of[start:stop])) if self.share_prompts else rollouts
            return run * max(prompts[start:stop]) + rollouts * max(responses[start:stop])

        cuts = [0]
        for row in range(1, experience.size):
            if tokens(cuts[-1], row + 1) > self.max_tokens:
                cuts.append(row)
        cuts.append(experience.size)
        pieces = max(parallel.gather(len(cuts) - 1)) if self.in_step else 0
        assert pieces <= experience.size, f"a rank has {experience.size} rollouts, and another runs {pieces} pieces"
        while len(cuts) - 1 < pieces:
            start, stop = max(pairwise(cuts), key=lambda pair: pair[1] - pair[0])
            cuts = sorted([*cuts, (start + stop) // 2])
        return [slice(start, stop) for start, stop in pairwise(cuts)]

    def piece(self, experience: Experience, rows: slice) -> Experience:
        """These rollouts, without the columns that are padding to all of them."""
        return trimmed(experience.rows(rows))


def groups(experience: Experience) -> list[list[int]]:
    """Of each prompt the numbers of its rollouts: what comes before a rollout's sample in its key names the prompt."""
    rows = groupby(range(experience.size), lambda row: experience.keys[row].rpartition("/")[0])
    return [list(members) for _, members in rows]


def trimmed(batch: Experience) -> Experience:
    """`batch` without the leading columns of prompts and the trailing ones of responses that none of its rows fills."""
    first = int(batch.attention_mask.any(dim=0).int().argmax())
    width = int(batch.response_mask.sum(dim=1).max())
    columns = slice(first, batch.prompt_length + width)
    names = ("response_mask", "sampler_logprobs", "reading", "paragraphs", "old_logprobs", "reference_logprobs")
    per_token = {name: getattr(batch, name) for name in names}
    return replace(
        batch,
        # Kernels may choose by memory layout as well: the rows of a slice of columns would lie further apart.
        input_ids=batch.input_ids[:, columns].contiguous(),
        attention_mask=batch.attention_mask[:, columns].contiguous(),
        **{name: value[:, :width].contiguous() for name, value in per_token.items() if value is not None},
    )


def join_rows(parts: Sequence[Float[Tensor, "rows _"]], width: int) -> Float[Tensor, "rollout response"]:
    """What pieces of a batch gave for each token, as one tensor with `width` columns, 0 where a piece has none."""
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
