"""How near the query of a response token is to the keys of the image tokens, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from atrl.credit.attention import require_layers
from atrl.credit.blocks import CHUNK_ELEMENTS, as_seen, blocks, head_index
from atrl.credit.hidden import Pooling, largest
from atrl.credit.regions import Regions, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Layers = tuple[int, ...] | Literal["last"] | None


@dataclass(frozen=True, kw_only=True)
class QueryKeyRequest:
    """Which queries and keys are compared, and how.

    Args:
        layers: numbers of the layers that are read, or the "last" one; None is all.
        heads: numbers of the heads that are read in each of them; None is all.
        row: "predicting" reads the query that produced a token (position t-1), "own" the token's.
        pooling: over image tokens, the "mean" or the "max" of the cosine.
        detail: also keep each token's cosine with each image token, the largest of any head.
    """

    layers: Layers = None
    heads: tuple[int, ...] | None = None
    row: Row = "predicting"
    pooling: Pooling = "max"
    detail: bool = False

    kind = "query_key"

    def reader(self, model: PreTrainedModel, regions: Regions) -> QueryKeyReader:
        """A fresh reader for one forward pass over the batch that `regions` describes."""
        layers = self.layers
        if layers == "last":
            layers = (model.config.get_text_config().num_hidden_layers - 1,)
        return QueryKeyReader(replace(self, layers=layers), regions)


@dataclass(frozen=True, slots=True, eq=False)
class QueryKeyCapture:
    """What was read of one batch; 0 on padding, without a picture, and where a sliding window hides it."""

    score: Float[Tensor, "rollout head response"]
    """Pooled cosine of each head of each layer that was read, layers in order."""
    image_mask: Bool[Tensor, "rollout image"]
    """Which of the (padded) image columns are real."""
    image: Float[Tensor, "rollout response image"] | None
    """The largest cosine with each image token in any head of any layer that was read; only with `detail`."""
    seen: Bool[Tensor, "rollout head response"] | None = None
    """Whether a head's layer shows the token an image token: where not, its score of 0 says nothing. None if no layer
    that was read has a sliding window."""


class QueryKeyReader:
    """Reads one forward pass, layer by layer. Reading a layer twice leaves the same result."""

    def __init__(self, request: QueryKeyRequest, regions: Regions) -> None:
        assert not isinstance(request.layers, str), "which layer is the last depends on the model: see `reader`"
        self._request, self._regions, self._layers = request, regions, request.layers
        self._scores: dict[int, Tensor] = {}
        self._seen: dict[int, Tensor] = {}
        self._windowed = False
        self._image: Tensor | None = None

    def read_attention(
        self,
        layer: int,
        query: Float[Tensor, "row heads query width"],
        key: Float[Tensor, "row kv_heads column width"],
        *,
        sliding_window: int | None = None,
        dtype: torch.dtype | None = None,
        **of_scores: object,
    ) -> None:
        """Add layer `layer`: queries and keys after rotary embedding, which the kernel sees in `dtype`, or as they are.

        A cosine needs no more of a softmax.

        Raises:
            ValueError: if it lacks a head that is asked for.
        """
        wanted = self._layers is None or layer in self._layers
        if not wanted or layer in self._scores:
            return
        regions, numbers = self._regions, _wanted_heads(self._request.heads, query.shape[1])
        heads = len(numbers)
        tokens, images = regions.rows.shape[1], regions.columns.shape[1]
        score = query.new_zeros((regions.size, heads, tokens), dtype=torch.float32)
        seen_here = score.new_zeros((regions.size, tokens), dtype=torch.bool)
        if self._request.detail and self._image is None:
            self._image = score.new_full((regions.size, tokens, images), -torch.inf)
        for part, first, last in blocks(regions, heads, key.shape[3], key.shape[3]) if images else ():
            here = regions.part(part)
            rows, keys = _unit_vectors(query, key, numbers[first:last], here, dtype)
            allowed = _allowed(here, sliding_window)
            seen_here[part] = allowed.any(dim=-1)
            step = max(1, CHUNK_ELEMENTS // (keys.shape[0] * keys.shape[1] * images))
            for start in range(0, tokens, step):
                chunk = slice(start, start + step)
                cosine, seen = rows[:, :, chunk] @ keys.transpose(2, 3), allowed[:, None, chunk]
                score[part, first:last, chunk] = _pooled(cosine, seen, self._request.pooling)
                if self._image is not None:
                    best = cosine.amax(dim=1).masked_fill(~seen[:, 0], -torch.inf)
                    self._image[part, chunk] = torch.maximum(self._image[part, chunk], best)
        self._scores[layer], self._seen[layer] = score, seen_here[:, None].expand_as(score)
        self._windowed |= sliding_window is not None

    def result(self) -> QueryKeyCapture:
        """What was read, layers in order.

        Raises:
            AssertionError: if no layer was read: the model's attention does not go through the interface.
            ValueError: if only some of the layers that are asked for were.
        """
        assert self._scores, (
            "the query-key reader saw no layer; does this model use transformers' attention interface, and does it "
            "have the layers that are asked for?"
        )
        require_layers(self._layers, self._scores)
        mask, columns = self._regions.row_mask, self._regions.column_mask
        image = None
        if self._image is not None:
            shown = mask[:, :, None] & columns[:, None, :] & self._image.isfinite()
            image = torch.where(shown, self._image, 0.0)
        scores = torch.where(mask[:, None], self._joined(self._scores), 0.0)
        seen = self._joined(self._seen) & mask[:, None] if self._windowed else None
        return QueryKeyCapture(score=scores, image_mask=columns, image=image, seen=seen)

    @staticmethod
    def _joined(read: dict[int, Tensor]) -> Shaped[Tensor, "rollout head response"]:
        return torch.cat([read[layer] for layer in sorted(read)], dim=1)


def _wanted_heads(asked: Sequence[int] | None, count: int) -> list[int]:
    if asked is None:
        return list(range(count))
    for head in asked:
        if not 0 <= head < count:
            raise ValueError(f"credit.head_numbers names head {head}: the layer has heads 0 to {count - 1}")
    return sorted(set(asked))


def _unit_vectors(
    query: Tensor, key: Tensor, heads: Sequence[int], regions: Regions, dtype: torch.dtype | None
) -> tuple[Float[Tensor, "response head token width"], Float[Tensor, "response head image width"]]:
    """Queries of the response tokens and keys of the image tokens, each of length 1."""
    per_group, behind = query.shape[1] // key.shape[1], key.shape[2] - query.shape[2]  # see `Block.behind`
    source = regions.source[:, None, None]
    chosen, groups = (
        head_index(tuple(index), query.device)[None, :, None]
        for index in (heads, (head // per_group for head in heads))
    )
    rows = query[source, chosen, (regions.rows - behind).clamp_min(0)[:, None, :]]
    keys = key[source, groups, regions.columns[:, None, :]]
    rows, keys = (torch.nn.functional.normalize(as_seen(states, dtype), dim=-1) for states in (rows, keys))
    return rows, keys


def _allowed(regions: Regions, sliding_window: int | None) -> Bool[Tensor, "response token image"]:
    """Which image tokens each query may see."""
    allowed = regions.column_mask[:, None, :].expand(-1, regions.rows.shape[1], -1)
    if sliding_window is None:
        return allowed
    return allowed & (regions.columns[:, None, :] > regions.rows[:, :, None] - sliding_window)


def _pooled(
    cosine: Float[Tensor, "response head token image"],
    allowed: Bool[Tensor, "response 1 token image"],
    pooling: Pooling,
) -> Float[Tensor, "response head token"]:
    if pooling == "max":
        return largest(cosine, allowed)
    return (cosine * allowed).sum(dim=-1) / allowed.sum(dim=-1).clamp_min(1)
