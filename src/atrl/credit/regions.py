"""Where the responses of a batch and their pictures are, for padded and for packed batches alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atrl.types import Experience

Row = Literal["predicting", "own"]


@dataclass(frozen=True, eq=False)
class Regions:
    """One entry per response. Positions count columns of the batch; padded entries point at column 0.

    A row of the batch may hold several sequences one after the other (packing); `start` keeps them apart.
    """

    source: Int[Tensor, "response"]
    """The row of the batch that holds the response."""
    start: Int[Tensor, "response"]
    """First column of its sequence: nothing before it is seen."""
    visible: Bool[Tensor, "row column"]
    """Columns of the batch that hold a token and not padding."""
    rows: Int[Tensor, "response row"]
    """Where the query of each response token stands; of some tokens only after `of_tokens`."""
    row_mask: Bool[Tensor, "response row"]
    tokens: Int[Tensor, "response token"]
    """Where each response token itself stands."""
    columns: Int[Tensor, "response image"]
    """Where its image (and video) tokens are."""
    column_mask: Bool[Tensor, "response image"]
    pictures: Float[Tensor, "response image picture"] | None = None
    """1 where an image column is of a picture (`picture_columns`); None unless mass is wanted by picture."""
    aligned: tuple[int, int] | None = None
    """(row, column) of the first response's first query, where every response has the next row and the same columns:
    what belongs to them can be had without a copy. None where they have not."""

    @property
    def size(self) -> int:
        """How many responses there are."""
        return self.rows.shape[0]

    @cached_property
    def pictures_first(self) -> bool:
        """Whether every image column is real and seen by every row; on a GPU, which would have to be waited for, no."""
        if self.rows.device.type != "cpu" or not self.rows.numel():
            return False
        seen = self.column_mask & (self.columns >= self.start[:, None]) & (self.columns <= self.rows[:, :1])
        return bool((seen & self.visible[self.source[:, None], self.columns]).all())

    def part(self, index: slice) -> Regions:
        """The responses of `index`; of all of them itself, so that what it has found out is kept."""
        if index == slice(0, self.size):
            return self
        return Regions(
            source=self.source[index],
            start=self.start[index],
            visible=self.visible,
            rows=self.rows[index],
            row_mask=self.row_mask[index],
            tokens=self.tokens[index],
            columns=self.columns[index],
            column_mask=self.column_mask[index],
            pictures=None if self.pictures is None else self.pictures[index],
            aligned=self.aligned and (self.aligned[0] + index.indices(self.size)[0], self.aligned[1]),
        )

    def of_tokens(self, index: slice) -> Regions:
        """The rows of the response tokens `index` alone; what they may look at stays."""
        first = index.indices(self.rows.shape[1])[0]
        return replace(
            self,
            rows=self.rows[:, index],
            row_mask=self.row_mask[:, index],
            aligned=self.aligned and (self.aligned[0], self.aligned[1] + first),
        )


def padded_regions(batch: Experience, image_token_ids: Sequence[int], row: Row = "predicting") -> Regions:
    """The regions of a batch with one response a row, all of which start at the same column.

    `row` says which query speaks for token t: the one that *predicts* it (position t-1) or its *own*.
    """
    device = batch.input_ids.device
    columns, column_mask = image_columns(batch.input_ids, image_token_ids)
    first = batch.prompt_length - int(row == "predicting")
    tokens = torch.arange(batch.prompt_length, batch.input_ids.shape[1], device=device).expand(batch.size, -1)
    return Regions(
        source=torch.arange(batch.size, device=device),
        start=torch.zeros(batch.size, dtype=torch.long, device=device),
        visible=batch.attention_mask.bool(),
        rows=tokens - int(row == "predicting"),
        row_mask=batch.response_mask,
        tokens=tokens,
        columns=columns,
        column_mask=column_mask,
        aligned=(0, first),
    )


def packed_regions(
    input_ids: Int[Tensor, "row column"],
    segments: Int[Tensor, "row column"],
    is_response: Bool[Tensor, "row column"],
    image_token_ids: Sequence[int],
    row: Row = "predicting",
) -> Regions:
    """The regions of rows that hold several sequences each.

    Args:
        segments: number of the sequence that each column belongs to; 0 is padding. A sequence is contiguous.
        is_response: the response tokens, contiguous within their sequence.
    """
    is_image = torch.isin(input_ids, torch.tensor(list(image_token_ids), device=input_ids.device))
    entries = []
    for source in range(input_ids.shape[0]):
        numbers = segments[source]
        for number in numbers.unique().tolist():
            if number:
                inside = numbers == number
                tokens = (inside & is_response[source]).nonzero()[:, 0]
                images = (inside & is_image[source]).nonzero()[:, 0]
                entries.append((source, int(inside.nonzero()[0, 0]), tokens, images))
    tokens, row_mask = _pad([entry[2] for entry in entries])
    columns, column_mask = _pad([entry[3] for entry in entries])
    return Regions(
        source=torch.tensor([entry[0] for entry in entries], device=input_ids.device),
        start=torch.tensor([entry[1] for entry in entries], device=input_ids.device),
        visible=segments != 0,
        rows=(tokens - int(row == "predicting")).clamp_min(0),
        row_mask=row_mask,
        tokens=tokens,
        columns=columns,
        column_mask=column_mask,
    )


def image_columns(
    input_ids: Int[Tensor, "rollout tokens"], image_token_ids: Sequence[int]
) -> tuple[Int[Tensor, "rollout image"], Bool[Tensor, "rollout image"]]:
    """Where each row's image tokens are, padded on the right to the most that any row has, and which are real."""
    is_image = torch.isin(input_ids, torch.tensor(list(image_token_ids), device=input_ids.device))
    count = is_image.sum(dim=1)
    order = torch.argsort(~is_image, dim=1, stable=True)[:, : int(count.max())]
    mask = torch.arange(order.shape[1], device=order.device)[None] < count[:, None]
    return order * mask, mask


def visual_token_ids(config) -> tuple[int, ...]:
    """The ids that stand for pictures and video frames in a model's input, by its configuration."""
    names = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")
    found = {value for name in names if (value := getattr(config, name, None)) is not None}
    assert found, f"{type(config).__name__} names no image token id"
    return tuple(sorted(found))


def _pad(lists: list[Tensor]) -> tuple[Tensor, Tensor]:
    width = max((len(entry) for entry in lists), default=0)
    padded = torch.stack([torch.nn.functional.pad(entry, (0, width - len(entry))) for entry in lists])
    lengths = torch.tensor([len(entry) for entry in lists], device=padded.device)
    return padded, torch.arange(width, device=padded.device)[None] < lengths[:, None]
