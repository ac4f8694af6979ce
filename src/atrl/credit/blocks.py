"""Attention rows of some heads of some responses at a time, so that no more exist at once than a chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from atrl.credit.regions import Regions

CHUNK_ELEMENTS = 1 << 22
"""Entries of one block of attention rows: 16 MiB of float32. A handful of such blocks exist at a time. Where a single
head's image block (response tokens × image tokens) is larger than this, that block is the bound."""

MassAt = Callable[[Tensor, Tensor], Tensor]
"""Columns [response column] and which of them are real → mass [response head token column], 0 where they are not."""


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

    @property
    def behind(self) -> int:
        """Columns before the first query: of prompts that were run before, only keys are there. Rows of padding, which
        may point there, get any query."""
        return self.key.shape[2] - self.query.shape[2]

    def masses(
        self, *, with_response: bool
    ) -> tuple[Float[Tensor, "response head token image"], Float[Tensor, "response token token"] | None]:
        """Mass of every token's row on its image columns, and on its response columns summed over the heads."""
        regions, heads = self.regions, len(self.heads)
        size, tokens = regions.rows.shape
        image = self.key.new_empty(size, heads, tokens, regions.columns.shape[1], dtype=torch.float32)
        response = image.new_empty(size, tokens, tokens) if with_response else None
        at_rows = self._exponentials_at if self.lse is not None else partial(self._softmax_at, self._every_key())
        real = torch.ones_like(regions.tokens, dtype=torch.bool)
        step = max(1, CHUNK_ELEMENTS // max(1, size * heads * self.key.shape[2]))
        for start in range(0, tokens, step):
            part = slice(start, min(start + step, tokens))
            mass = at_rows(part)
            image[:, :, part] = mass(regions.columns, regions.column_mask)
            if response is not None:
                response[:, part] = mass(regions.tokens, real).sum(dim=1)
        return image, response

    def _every_key(self) -> Float[Tensor, "response head column width"]:
        return self._keys(torch.arange(self.key.shape[2], device=self.key.device).expand(self.regions.size, -1))

    def _softmax_at(self, key: Float[Tensor, "response head column width"], part: slice) -> MassAt:
        """By the softmax of the tokens `part` over all columns."""
        mass = self._softmax_rows(key, self.regions.rows[:, part])

        def at(columns: Tensor, real: Tensor) -> Tensor:
            return mass.gather(-1, columns[:, None, None, :].expand(-1, *mass.shape[1:3], -1)) * real[:, None, None, :]

        return at

    def _exponentials_at(self, part: slice) -> MassAt:
        """By ``exp(score − lse)`` of the tokens `part` at the wanted columns alone."""
        regions, rows = self.regions, self.regions.rows[:, part]
        padding = ~regions.row_mask[:, None, part]
        lse = self.of_rows(self.lse, rows).float().masked_fill(padding, torch.inf).flatten(0, 1)
        query = self._queries(rows).flatten(0, 1)

        def at(columns: Tensor, real: Tensor) -> Tensor:
            key = self._keys(columns).flatten(0, 1)
            mass = torch.baddbmm(lse[..., None], query, key.mT, beta=-1, alpha=self.scaling).exp_()
            mass = mass.unflatten(0, (regions.size, -1))
            seen = real & (columns >= regions.start[:, None]) & regions.visible[regions.source[:, None], columns]
            if mass.device.type == "cpu" and (seen & (columns <= rows[:, :1])).all():
                return mass  # one picture or more, all of it before the response: every row sees every column
            seen = seen[:, None, :] & (columns[:, None, :] <= rows[:, :, None])
            return torch.where(seen[:, None], mass, 0.0)

        return at

    def _queries(self, rows: Int[Tensor, "response token"]) -> Float[Tensor, "response head token width"]:
        return self.of_rows(self.query, rows).float()

    def of_rows(
        self, tensor: Float[Tensor, "row heads query *entry"], rows: Int[Tensor, "response token"]
    ) -> Float[Tensor, "response head token *entry"]:
        """What `tensor` holds of the heads of this block for the queries that stand in `rows`."""
        source, asked = self.regions.source, (rows - self.behind).clamp_min(0)
        first, last = self.heads[0], self.heads[-1] + 1
        moved = tensor[:, first:last].transpose(1, 2)
        if self.heads == list(range(first, last)) and moved.stride(0) == moved.stride(1) * moved.shape[1]:
            # Rows and queries are one dimension without a copy: whole queries are several times as fast by one index.
            places = source[:, None] * moved.shape[1] + asked
            return moved.flatten(0, 1).index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)
        heads = torch.tensor(self.heads, device=rows.device)
        return tensor[source[:, None, None], heads[None, :, None], asked[:, None, :]]

    def _keys(self, columns: Int[Tensor, "response column"]) -> Float[Tensor, "response head column width"]:
        per_group = self.query.shape[1] // self.key.shape[1]
        groups = torch.tensor([head // per_group for head in self.heads], device=columns.device)
        return self.key[self.regions.source[:, None, None], groups[None, :, None], columns[:, None, :]].float()

    def _softmax_rows(
        self, key: Float[Tensor, "response head column width"], rows: Int[Tensor, "response token"]
    ) -> Float[Tensor, "response head token column"]:
        scores = (self._queries(rows) @ key.transpose(2, 3)).mul_(self.scaling)
        if self.softcap is not None:
            scores = (scores / self.softcap).tanh_().mul_(self.softcap)
        # A row that belongs to padding may be allowed nothing, and then reads everything: it is masked in the end.
        scores += self._bias(rows, key.shape[2])[:, None]
        return scores.softmax(-1)

    def _bias(self, rows: Int[Tensor, "response token"], columns: int) -> Float[Tensor, "response token column"]:
        """0 where a row may look, and a number below any score where it may not."""
        column = torch.arange(columns, device=rows.device)[None, None, :]
        hidden = (column > rows[:, :, None]) | (column < self.regions.start[:, None, None])
        if self.sliding_window is not None:
            hidden |= column <= rows[:, :, None] - self.sliding_window
        hidden |= ~self.regions.visible[self.regions.source][:, None, :]
        return hidden.float() * torch.finfo(torch.float32).min


def blocks(regions: Regions, heads: int, columns: int) -> Iterator[tuple[slice, int, int]]:
    """(responses, first head, last head) such that neither the rows' scores nor the image block exceed a chunk,

    as long as one head of one response fits; the rows of that head are cut further where its scores do not.
    """
    tokens, images = regions.rows.shape[1], regions.columns.shape[1]
    fitting = max(1, CHUNK_ELEMENTS // max(1, tokens * max(columns, images)))
    responses, heads_each = max(1, fitting // heads), min(heads, fitting)
    for start in range(0, regions.size, responses):
        part = slice(start, min(start + responses, regions.size))
        for first in range(0, heads, heads_each):
            yield part, first, min(first + heads_each, heads)
