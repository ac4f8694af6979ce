"""Attention rows of some heads of some responses at a time, so that no more exist at once than a chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atrl.credit.regions import Regions

CHUNK_ELEMENTS = 1 << 22
"""Entries of one block of attention rows, and of the keys that it is made of: 16 MiB of float32. A handful of such
blocks exist at a time. Where the keys of a single head (columns × width) or one of its rows are larger than this, they
are the bound."""

LOGSUMEXP_TOLERANCE = 1e-2
"""Of a mass. Kernels add in other orders, of half precision's exact products; another base or scaling is far beyond."""

MassAt = Callable[[Tensor, Tensor, bool], Tensor]
"""Columns [response column], which of them are real, and whether all of them are and every row sees them → mass
[response head token column], 0 where they are not."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some heads of some responses in one layer."""

    query: Float[Tensor, "row heads query width"]
    key: Float[Tensor, "row kv_heads column width"]
    heads: list[int]
    regions: Regions
    scaling: float
    sliding_window: int | None
    softcap: float | None
    lse: Float[Tensor, "row heads query"] | None = None
    """Natural log-sum-exp of every query under the same mask, scaling and softcap, where the kernel kept it: then only
    the columns that are asked for are looked at. None works it out from the scores of all columns."""
    dtype: torch.dtype | None = None
    """In which the kernel sees queries and keys, where that is not their own. Only those that are taken are rounded."""

    @property
    def behind(self) -> int:
        """Columns before the first query: of prompts that were run before, only keys are there. Rows of padding, which
        may point there, get any query."""
        return self.key.shape[2] - self.query.shape[2]

    def image_mass(self) -> Float[Tensor, "response head row image"]:
        """Mass of every row on its image columns."""
        regions, at_rows = self.regions, self._mass_of()
        size, rows = regions.rows.shape
        image = (regions.columns, regions.column_mask, regions.pictures_first)
        step = max(1, CHUNK_ELEMENTS // max(1, size * len(self.heads) * self.key.shape[2]))
        if step >= rows:
            return at_rows(slice(0, rows))(*image)
        found = self.key.new_empty(size, len(self.heads), rows, regions.columns.shape[1], dtype=torch.float32)
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            found[:, :, part] = at_rows(part)(*image)
        return found

    def response_mass(self) -> Float[Tensor, "response row token"]:
        """Mass of every row on the columns of its response, summed over the heads; the rows of all of them are held."""
        tokens = self.regions.tokens
        at = self._mass_of()(slice(0, self.regions.rows.shape[1]))
        return at(tokens, torch.ones_like(tokens, dtype=torch.bool), False).sum(dim=1)

    def _mass_of(self) -> Callable[[slice], MassAt]:
        """What gives the mass of some rows."""
        return self._exponentials_at if self.lse is not None else partial(self._softmax_at, self._every_key())

    def _every_key(self) -> Float[Tensor, "response head column width"]:
        columns = torch.arange(self.key.shape[2], device=self.key.device).expand(self.regions.size, -1)
        return self._keys([head // self._per_group for head in self.heads], columns)

    def _softmax_at(self, key: Float[Tensor, "response head column width"], part: slice) -> MassAt:
        """By the softmax of the rows `part` over all columns."""
        mass = self._softmax_rows(key, part)

        def at(columns: Tensor, real: Tensor, all_seen: bool) -> Tensor:
            return mass.gather(-1, columns[:, None, None, :].expand(-1, *mass.shape[1:3], -1)) * real[:, None, None, :]

        return at

    def _exponentials_at(self, part: slice) -> MassAt:
        """By ``exp(score − lse)`` of the rows `part` at the wanted columns alone."""
        regions, rows = self.regions, self.regions.rows[:, part]
        groups, share = self._shared_keys()
        # The rows of all heads that share a key are one matrix.
        matrices, height = regions.size * len(groups), share * rows.shape[1]
        padding = ~regions.row_mask[:, None, part]
        lse = self.of_rows(self.lse, part).float().masked_fill(padding, torch.inf).reshape(matrices, height, 1)
        query = self._queries(part).reshape(matrices, height, self.query.shape[3])

        def at(columns: Tensor, real: Tensor, all_seen: bool) -> Tensor:
            key = self._keys(groups, columns).flatten(0, 1)
            mass = torch.baddbmm(lse, query, key.mT, beta=-1, alpha=self.scaling).exp_()
            mass = mass.view(regions.size, len(self.heads), rows.shape[1], columns.shape[1])
            if all_seen:
                return mass
            seen = real & (columns >= regions.start[:, None]) & regions.visible[regions.source[:, None], columns]
            seen = seen[:, None, :] & (columns[:, None, :] <= rows[:, :, None])
            return torch.where(seen[:, None], mass, 0.0)

        return at

    def _queries(self, part: slice) -> Float[Tensor, "response head token width"]:
        return as_seen(self.of_rows(self.query, part), self.dtype)

    def of_rows(
        self, tensor: Float[Tensor, "row heads query *entry"], part: slice
    ) -> Float[Tensor, "response head token *entry"]:
        """What `tensor` holds of the heads of this block for the queries of the tokens `part`; a view where it can."""
        regions, rows = self.regions, self.regions.rows[:, part]
        first, last = self.heads[0], self.heads[-1] + 1
        if regions.aligned is not None and self.heads == list(range(first, last)):
            row, start = regions.aligned
            start += part.indices(regions.rows.shape[1])[0] - self.behind
            if start >= 0:
                return tensor[row : row + regions.size, first:last, start : start + rows.shape[1]]
        heads = head_index(tuple(self.heads), rows.device)
        asked = (rows - self.behind).clamp_min(0)
        return tensor[regions.source[:, None, None], heads[None, :, None], asked[:, None, :]]

    @property
    def _per_group(self) -> int:
        return self.query.shape[1] // self.key.shape[1]

    def _shared_keys(self) -> tuple[list[int], int]:
        """The key-value heads that the heads of this block look at, and how many of these look at each, one after the
        other; where that is not the same number, each head's own."""
        own = [head // self._per_group for head in self.heads]
        groups = sorted(set(own))
        share = len(own) // len(groups)
        return (groups, share) if own == [group for group in groups for _ in range(share)] else (own, 1)

    def _keys(
        self, groups: list[int], columns: Int[Tensor, "response column"]
    ) -> Float[Tensor, "response group column width"]:
        index = head_index(tuple(groups), columns.device)
        key = self.key[self.regions.source[:, None, None], index[None, :, None], columns[:, None, :]]
        return as_seen(key, self.dtype)

    def _softmax_rows(
        self, key: Float[Tensor, "response head column width"], part: slice
    ) -> Float[Tensor, "response head token column"]:
        scores = (self._queries(part) @ key.transpose(2, 3)).mul_(self.scaling)
        if self.softcap is not None:
            scores = (scores / self.softcap).tanh_().mul_(self.softcap)
        # A row that belongs to padding may be allowed nothing, and then reads everything: it is masked in the end.
        hidden = hidden_columns(self.regions.of_tokens(part), key.shape[2], self.sliding_window)
        scores += (hidden.float() * torch.finfo(torch.float32).min)[:, None]
        return scores.softmax(-1)


def hidden_columns(regions: Regions, columns: int, window: int | None) -> Bool[Tensor, "response token column"]:
    """Where the rows of `regions` may not look: behind themselves, before their window or sequence, at padding."""
    rows = regions.rows[:, :, None]
    column = torch.arange(columns, device=rows.device)[None, None, :]
    hidden = (column > rows) | (column < regions.start[:, None, None])
    if window is not None:
        hidden |= column <= rows - window
    return hidden | ~regions.visible[regions.source][:, None, :]


def exceed_a_chunk(layers: Iterable[Block]) -> bool:
    """Whether the queries and keys of so many layers have more entries than a chunk."""
    return sum(layer.query.numel() + layer.key.numel() for layer in layers) > CHUNK_ELEMENTS


def as_seen(states: Float[Tensor, "*place"], dtype: torch.dtype | None) -> Float[Tensor, "*place"]:
    """In float32, rounded as for a kernel that sees `dtype`; None leaves them as they are."""
    return states.to(dtype or states.dtype).float()


@lru_cache(maxsize=256)
def head_index(heads: tuple[int, ...], device: torch.device) -> Int[Tensor, "head"]:
    """Kept, because copying a list to the GPU waits for all that the GPU has still to do."""
    return torch.tensor(heads, device=device)


def check_logsumexp(block: Block) -> None:
    """Compare the log-sum-exp that the kernel kept with the block's own scores: one head of one response, as many of
    its first rows as fit into a chunk.

    Raises:
        AssertionError: if it is not theirs, as with another base, order or scaling.
    """
    rows = slice(0, max(1, CHUNK_ELEMENTS // block.key.shape[2]))
    one = replace(block, heads=block.heads[:1], regions=block.regions.part(slice(0, 1)).of_tokens(rows))
    real = one.regions.row_mask[0, :, None]
    found = []
    for by in (one, replace(one, lse=None)):
        found.append(torch.cat([by.image_mass()[0, 0], by.response_mass()[0]], dim=-1).where(real, 0.0))
    worst = (found[0] - found[1]).abs().max().item()
    assert worst < LOGSUMEXP_TOLERANCE, (
        f"the log-sum-exp that the attention kernel keeps gives masses that are {worst:.2g} off: set "
        "model.attention=eager, which keeps none, and tell us the GPU and the version of torch"
    )


def blocks(regions: Regions, heads: int, columns: int, width: int = 1) -> Iterator[tuple[slice, int, int]]:
    """(responses, first head, last head) such that neither scores, keys nor the image block exceed a chunk,

    as long as one head of one response fits; its rows are cut further where its scores or its image block do not.

    Args:
        regions: where the responses are.
        heads: how many there are.
        columns: that a row of scores has.
        width: of a head's keys; 1 where none are copied.
    """
    tokens, images = regions.rows.shape[1], regions.columns.shape[1]
    fitting = max(1, CHUNK_ELEMENTS // max(1, max(tokens, width) * max(columns, images)))
    responses, heads_each = max(1, fitting // heads), min(heads, fitting)
    for start in range(0, regions.size, responses):
        part = slice(start, min(start + responses, regions.size))
        for first in range(0, heads, heads_each):
            yield part, first, min(first + heads_each, heads)


def image_parts(regions: Regions, heads: int) -> list[slice]:
    """Rows such that what `heads` heads of all responses hold of their image columns does not exceed a chunk,

    as long as a row fits.
    """
    rows = regions.rows.shape[1]
    step = max(1, CHUNK_ELEMENTS // max(1, regions.size * heads * regions.columns.shape[1]))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def row_blocks(regions: Regions, columns: int, width: int = 1) -> Iterator[tuple[slice, slice, int]]:
    """(responses, their rows, heads) such that the scores of so many heads, and their keys, don't exceed a chunk,

    as long as one row and the keys of one head fit.

    Args:
        regions: where the responses are.
        columns: that a row of scores has.
        width: of a head's keys; 1 where none are copied.
    """
    rows = regions.rows.shape[1]
    rows_each = max(1, min(rows, CHUNK_ELEMENTS // max(1, columns)))
    of_one = max(rows_each, width) * max(1, columns)
    responses = max(1, CHUNK_ELEMENTS // of_one)
    for start in range(0, regions.size, responses):
        part = slice(start, min(start + responses, regions.size))
        heads = max(1, CHUNK_ELEMENTS // ((part.stop - part.start) * of_one))
        for first in range(0, rows, rows_each):
            yield part, slice(first, min(first + rows_each, rows)), heads
