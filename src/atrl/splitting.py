"""Cutting a batch into the pieces that go through the model one after the other, and joining what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from atrl.experience import micro_batches
from atrl.types import Experience


class Split(Protocol):
    """Consecutive slices of a batch's rollouts, and the batch that each of them is to the model."""

    one_width: bool
    """Whether all pieces are padded alike."""

    def slices(self, experience: Experience) -> list[slice]: ...
    def piece(self, experience: Experience, rows: slice) -> Experience: ...


@dataclass(frozen=True, kw_only=True)
class EvenSplit:
    """`size` rollouts at a time, padded like the whole batch."""

    size: int
    one_width = True

    def slices(self, experience: Experience) -> list[slice]:
        """The last may be shorter."""
        return list(micro_batches(experience.size, self.size))

    def piece(self, experience: Experience, rows: slice) -> Experience:
        """These rollouts, padding kept."""
        return experience.rows(rows)


@dataclass(frozen=True, kw_only=True)
class GroupSplit:
    """One prompt's rollouts at a time, padded for themselves.

    The kernels of a matrix product depend on its shape, and so do the last bits of its result. A group that always has
    the shapes of its own gets the same bits in whatever batch, micro-batch size or number of processes.
    """

    one_width = False

    def slices(self, experience: Experience) -> list[slice]:
        """A slice a group: what comes before the number of the sample in a rollout's key names it."""
        rows = groupby(range(experience.size), lambda row: experience.keys[row].rpartition("/")[0])
        groups = [list(members) for _, members in rows]
        return [slice(members[0], members[-1] + 1) for members in groups]

    def piece(self, experience: Experience, rows: slice) -> Experience:
        """These rollouts, without the columns that are padding to all of them."""
        return trimmed(experience.rows(rows))


def trimmed(batch: Experience) -> Experience:
    """`batch` without the leading columns of prompts and the trailing ones of responses that none of its rows fills."""
    first = int(batch.attention_mask.any(dim=0).int().argmax())
    width = int(batch.response_mask.sum(dim=1).max())
    columns = slice(first, batch.prompt_length + width)
    names = ("response_mask", "sampler_logprobs", "reading", "old_logprobs", "reference_logprobs")
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
