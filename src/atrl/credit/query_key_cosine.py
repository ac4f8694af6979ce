"""Credit by how near a token's query is to the picture's keys, span by span (in the manner of KAWHI)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atrl.credit.base import CreditScheme, normalise
from atrl.credit.connectivity import top_heads_mean
from atrl.credit.graph import combined, nearest_neighbours, similarity_strengths
from atrl.credit.hidden import Pooling
from atrl.credit.metis import partition
from atrl.credit.query_key import QueryKeyCapture, QueryKeyRequest
from atrl.credit.regions import Row
from atrl.credit.weights import check_count, check_weights, choose_anchors, load_map
from atrl.types import CreditOutput, Evidence, Experience

NEIGHBOURS = 8
"""Edges that a token keeps where spans are clusters."""


@dataclass(frozen=True, kw_only=True)
class QueryKeyCosineCredit(CreditScheme):
    """Spans of tokens whose queries point at the picture's keys get more of the credit.

    c[t]: the cosine of token t's query with the image tokens' keys, after rotary embedding, pooled over them and
    reduced over heads; a span's score is the mean of its tokens'. From KAWHI (Han et al., arXiv 2603.27375), whose
    summary is public and whose formulas we could not read: that some heads are the visual ones, and that credit goes
    to paragraphs. Ours: the cosine, heads by contrast, what a span is (credit does not know the tokenizer), and the
    map to weights; their localisation of key regions has no counterpart beyond `pooling="max"`.

    Args:
        layers: numbers of the layers that are read; None is all.
        row: the query that speaks for a token: "predicting" it (position t-1) or its "own".
        pooling: over image tokens, the "max" or the "mean" of the cosine.
        reduction: over heads, "top_heads" or the "mean" (see `connectivity.head_contrast`).
        top_heads: how many heads `reduction="top_heads"` averages.
        smoothing: a span is a "window" of consecutive tokens, a "cluster" (METIS) of tokens near the same image
            tokens, or each token alone ("none").
        window: tokens in a window.
        num_clusters: METIS parts; a response of T tokens gets at most T/2.
        weights: "load_map" maps a span's score linearly into `rest_weight` … `anchor_weight`; "anchors" gives those
            two weights to the anchor_ratio · T tokens of the highest spans, and to the rest.
        anchor_ratio: share of a response's tokens that are anchors, marked for metrics in either form.
        anchor_weight, rest_weight: before the weights are scaled to mean 1.
        seed: of METIS.
    """

    layers: tuple[int, ...] | None = None
    row: Row = "predicting"
    pooling: Pooling = "max"
    reduction: Literal["mean", "top_heads"] = "top_heads"
    top_heads: int = 4
    smoothing: Literal["window", "cluster", "none"] = "window"
    window: int = 16
    num_clusters: int = 8
    weights: Literal["load_map", "anchors"] = "load_map"
    anchor_ratio: float = 0.15
    anchor_weight: float = 3.0
    rest_weight: float = 1.0
    seed: int = 0

    name = "query_key_cosine"

    def __post_init__(self) -> None:
        check_weights(self.anchor_ratio, self.anchor_weight, self.rest_weight)
        check_count("top_heads", self.top_heads, usual=4)
        check_count("window", self.window, usual=16)
        check_count("num_clusters", self.num_clusters, usual=8)

    @property
    def requests(self) -> tuple[QueryKeyRequest, ...]:
        """One reading of queries and keys, with image rows only if they are clustered."""
        layers = None if self.layers is None else tuple(self.layers)
        detail = self.smoothing == "cluster"
        return (QueryKeyRequest(layers=layers, row=self.row, pooling=self.pooling, detail=detail),)

    @torch.no_grad()
    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Weights, anchors and span scores of every response; without a picture all tokens weigh the same."""
        capture: QueryKeyCapture = evidence.read[self.requests[0]]
        mask = batch.response_mask
        score = self._score(capture, mask).cpu()
        weights, anchors = mask.float().cpu(), torch.zeros(mask.shape, dtype=torch.bool)
        for row, length in enumerate(mask.sum(dim=1).tolist()):
            own = score[row, :length].numpy()
            if own.any():
                spans = self._spans(capture, row, length)
                load = span_means(own, spans)
                chosen = choose_anchors(own, spans, load, ratio=self.anchor_ratio)
                weights[row, :length] = torch.from_numpy(self._weigh(load, spans, chosen))
                anchors[row, :length] = torch.from_numpy(chosen)
                score[row, :length] = torch.from_numpy(load[spans])
        weights, anchors, score = (part.to(mask.device) for part in (weights, anchors, score))
        return CreditOutput(normalise(weights, mask), anchors=anchors, density=score)

    def _score(
        self, capture: QueryKeyCapture, mask: Bool[Tensor, "rollout response"]
    ) -> Float[Tensor, "rollout response"]:
        if self.reduction == "mean":
            reduced = capture.score.mean(dim=1)
        else:
            reduced = top_heads_mean(capture.score, mask, top_heads=self.top_heads)
        return torch.where(mask, reduced.float(), 0.0)

    def _spans(self, capture: QueryKeyCapture, row: int, length: int) -> Int[np.ndarray, "token"]:
        """The number of each token's span; padding is cut off, so that nothing depends on the rest of the batch."""
        position = np.arange(length)
        if self.smoothing == "none":
            return position
        if self.smoothing == "window":
            return position // self.window
        num_clusters = min(self.num_clusters, length // 2)
        if num_clusters <= 1:
            return np.zeros_like(position)
        width = int(capture.image_mask[row].sum())
        strengths = combined([similarity_strengths(capture.image[row, :length, :width].cpu().numpy())])
        graph = nearest_neighbours(strengths, neighbours=NEIGHBOURS)
        return np.array(partition(*graph, num_clusters=num_clusters, seed=self.seed))

    def _weigh(
        self, load: Float[np.ndarray, "span"], spans: Int[np.ndarray, "token"], anchors: Bool[np.ndarray, "token"]
    ) -> Float[np.ndarray, "token"]:
        if self.weights == "load_map":
            return load_map(load, spans, low=self.rest_weight, high=self.anchor_weight)
        return np.where(anchors, self.anchor_weight, self.rest_weight).astype(np.float32)


def span_means(values: Float[np.ndarray, "token"], spans: Int[np.ndarray, "token"]) -> Float[np.ndarray, "span"]:
    """The mean of each span's values; a span that no token has ranks below all others."""
    count = np.bincount(spans)
    means = np.bincount(spans, weights=values) / np.maximum(count, 1)
    return np.where(count > 0, means, -np.inf).astype(np.float32)
