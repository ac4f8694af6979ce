"""How much of a picture the rows of a response see through a layer's sliding window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from atrl.credit.regions import Regions


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Numbers alone: a mask of rows and columns would be as large as masses are."""

    columns: Int[Tensor, "rollout row"]
    """How many image columns each row sees; anything on padding."""
    rows: Int[Tensor, "rollout image"]
    """How many rows see each image column; 0 on padding."""

    def of(self, rollouts: Int[Tensor, "rollout"]) -> Seen:
        """Of these rollouts alone, which may come several times."""
        return Seen(self.columns[rollouts], self.rows[rollouts])


def seen_through(regions: Regions, window: int | None) -> Seen | None:
    """What rows see where `window` hides an image column from some of them; None where every row sees all.

    Row r sees the columns above r − window. On a GPU, which would have to be waited for, numbers are returned wherever
    the batch is longer than the window; they make the same of rows that see everything.
    """
    width = regions.visible.shape[1]
    if window is None or window >= width or not regions.columns.numel() or not regions.rows.numel():
        return None
    beyond = 2 * width  # what no position plus a window reaches, so that padding is counted by none
    rows = regions.rows.masked_fill(~regions.row_mask, beyond).contiguous()
    columns = regions.columns.masked_fill(~regions.column_mask, beyond).contiguous()
    hidden = torch.searchsorted(columns.sort(dim=1).values, rows - window, right=True)
    if rows.device.type == "cpu" and not (hidden * regions.row_mask).any():
        return None
    seeing = torch.searchsorted(rows.sort(dim=1).values, columns + window)
    return Seen(
        columns=regions.column_mask.sum(dim=1, keepdim=True) - hidden,
        rows=seeing * regions.column_mask,
    )
