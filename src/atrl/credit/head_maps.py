"""Where each head of each layer looked: its attention on the picture, averaged over tokens by given weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from atrl.credit.blocks import Block, blocks
from atrl.credit.connectivity import remove_sinks
from atrl.credit.regions import Regions
from atrl.credit.window import seen_through

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadMapRequest:
    """Every head's map, without keeping any token's.

    Args:
        weights: [rollout, response] how much each token counts in the mean; 0 on padding.
        sink_factor: image columns that are sinks are left out (see `connectivity.remove_sinks`); 0 keeps all.
        row: the query that speaks for a token.
    """

    weights: Float[Tensor, "rollout response"]
    sink_factor: float
    row: str

    def reader(self, model: PreTrainedModel, regions: Regions) -> HeadMapReader:
        """A fresh reader for one forward pass over the batch that `regions` describes."""
        return HeadMapReader(self, regions)


class HeadMapReader:
    """Adds up one forward pass, layer by layer; reading a layer twice leaves the same result."""

    def __init__(self, request: HeadMapRequest, regions: Regions) -> None:
        self._request, self._regions = request, regions
        weights = torch.where(regions.row_mask, request.weights.float(), 0.0)
        self._weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        self._maps: dict[int, Tensor] = {}

    def read_attention(
        self,
        layer: int,
        query: Float[Tensor, "row heads query width"],
        key: Float[Tensor, "row kv_heads column width"],
        *,
        scaling: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        logsumexp: Float[Tensor, "row heads query"] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Add layer `layer`: queries and keys after rotary embedding, which the kernel sees in `dtype`."""
        regions, heads = self._regions, query.shape[1]
        found = query.new_zeros(regions.size, heads, regions.columns.shape[1], dtype=torch.float32)
        for part, first, last in blocks(regions, heads, key.shape[2], key.shape[3]):
            here = regions.part(part)
            own = list(range(first, last))
            block = Block(query, key, own, here, scaling, sliding_window, softcap, logsumexp, dtype)
            image = block.image_mass()
            if self._request.sink_factor > 0:
                masks, seen = (here.column_mask, here.row_mask), seen_through(here, sliding_window)
                image = remove_sinks(image, *masks, factor=self._request.sink_factor, seen=seen)
            found[part, first:last] = torch.einsum("bt,bhtv->bhv", self._weights[part], image)
        self._maps[layer] = found

    def result(self) -> Float[Tensor, "rollout layer head image"]:
        """Mean mass on each image token, layers in order; empty where no layer was seen."""
        assert self._maps, "no layer was read: does this model use transformers' attention interface?"
        return torch.stack([self._maps[layer] for layer in sorted(self._maps)], dim=1)
