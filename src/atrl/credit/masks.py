"""Whether a layer lets the rows that are read look where readers suppose, and nowhere else.

Readers work masses out anew: causal, within a sequence, through the sliding window that the layer names. A layer that
cuts the sequence into chunks, shows a prompt in both directions or chooses what each row looks at would be read wrong,
and nothing else would tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from atrl.credit.blocks import hidden_columns
from atrl.credit.regions import Regions

UNREAD_OPTIONS: Mapping[str, str] = {
    "s_aux": "a learned sink in its softmax",
    "position_bias": "a bias that it adds to its scores",
    "indices": "tokens that it chooses to look at",
    "block_indices": "blocks that it chooses to look at",
}
"""What models hand to a kernel that changes its softmax in a way that no reader follows."""


def check_options(layer: int, options: Mapping[str, Any]) -> None:
    """Raises AssertionError where a kernel is handed something of `UNREAD_OPTIONS`."""
    for name, what in UNREAD_OPTIONS.items():
        assert options.get(name) is None, (
            f"the attention probe can't read layer {layer}, because of {what} ({name}): use credit=none, or another "
            "model"
        )


class MaskCheck:
    """Of one forward pass; what a GPU finds is waited for once, in `finish`.

    The first and the last row of each response are looked at: a window, a chunk or a prompt that is seen as a whole
    shows there. And they are looked at where no pass has been longer, with a mask or without: that is where a rule
    begins to show, and what a mask is made of does not change from pass to pass.

    Args:
        regions: where the rows are that are read.
        longest: columns that a pass before had at most, by layer and whether there was a mask; this pass's are added.
    """

    def __init__(self, regions: Sequence[Regions], longest: dict[tuple[int, bool], int] | None = None) -> None:
        self._regions = [own for own in regions if own.rows.numel()]
        self._longest = {} if longest is None else longest
        self._lengths: dict[tuple[int, bool], int] = {}
        self._seen: list[tuple[Tensor | None, int | None]] = []
        self._found: dict[int, Bool[Tensor, ""]] = {}

    def compare(
        self,
        layer: int,
        query: Float[Tensor, "row heads query width"],
        key: Float[Tensor, "row kv_heads column width"],
        *,
        mask: Shaped[Tensor, "any_row any_head query column"] | None,
        written: bool,
        causal: bool,
        window: int | None,
    ) -> None:
        """Compare what the kernel of layer `layer` was given with what readers suppose.

        Layers share their masks, and each is looked at once.

        Args:
            mask: True or 0 where a row of queries may look; None for everywhere, or for what is `causal`.
            written: `mask` says it all; FlashAttention's and FlexAttention's do not, and are not looked at.
            causal: where there is no mask, the kernel itself hides what is behind a row by its place in `query`.

        Raises:
            AssertionError: if the keys are not those of the sequence.
        """
        size, columns = key.shape[0], key.shape[2]
        for regions in self._regions:
            rows, tokens = regions.visible.shape
            assert (size, columns) == (rows, tokens), (
                f"the attention probe can't read layer {layer}: it has {columns} keys in each of {size} rows, and the "
                f"batch {tokens} tokens in each of {rows}, as where pictures come in by cross-attention: use "
                "credit=none, or another model"
            )
        kind = layer, mask is None
        if not written or columns <= self._longest.get(kind, 0):
            return
        self._lengths[kind] = columns
        if any(mask is other and window == own for other, own in self._seen):
            return
        self._seen.append((mask, window))
        for regions in map(_ends, self._regions):
            asked = (regions.rows - (columns - query.shape[2])).clamp_min(0)
            seen = _looked_at(mask, regions.source, asked, columns, causal=causal and query.shape[2] > 1)
            hidden = hidden_columns(regions, columns, window)[:, :, None]
            wrong = ((seen == hidden).any(dim=(2, 3)) & regions.row_mask).any()
            self._found[layer] = wrong | self._found.get(layer, wrong)

    def finish(self) -> None:
        """Raises AssertionError, with its number, where a layer lets a row look elsewhere."""
        self._seen = []
        wrong = [layer for layer, found in self._found.items() if bool(found)]
        assert not wrong, (
            f"the attention probe can't read layer {wrong[0]}: its mask is not that of causal attention, with a "
            "sliding window or without, so that what it reads would be wrong: use credit=none, or another model"
        )
        self._longest.update(self._lengths)


def _ends(regions: Regions) -> Regions:
    """The first and the last real row of each response alone."""
    real = regions.row_mask.int()
    ends = torch.stack([real.argmax(dim=1), real.shape[1] - 1 - real.flip(1).argmax(dim=1)], dim=1)
    rows, row_mask = regions.rows.gather(1, ends), regions.row_mask.gather(1, ends)
    return replace(regions, rows=rows, row_mask=row_mask, aligned=None)


def _looked_at(
    mask: Shaped[Tensor, "any_row any_head query column"] | None,
    source: Int[Tensor, "response"],
    asked: Int[Tensor, "response token"],
    columns: int,
    *,
    causal: bool,
) -> Bool[Tensor, "response token head column"]:
    """Where the kernel lets the queries `asked` look."""
    if mask is None:
        column = torch.arange(columns, device=asked.device)
        shown = column <= asked[:, :, None] if causal else torch.ones_like(asked, dtype=torch.bool)[:, :, None]
        return shown.expand(*asked.shape, columns)[:, :, None]
    row = source if mask.shape[0] > 1 else torch.zeros_like(source)
    taken = mask[row[:, None], :, asked]
    return taken if taken.dtype == torch.bool else taken == 0
