"""Scores of tokens → spans → weights, response by response. Arrays in, arrays out; no torch, so that worker processes
start fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from atrl.credit import metis
from atrl.credit.graph import combined, nearest_neighbours, similarity_strengths
from atrl.credit.weights import choose_anchors, weights_of

NEIGHBOURS = 8
"""Edges that a token keeps where spans are clusters."""

Smoothing = Literal["window", "cluster", "paragraph", "none"]
SpanWeights = Literal["load_map", "anchors", "softmax"]
Graph = tuple[Int[np.ndarray, "row"], Int[np.ndarray, "edge"], Int[np.ndarray, "edge"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanSettings:
    """The options of `QueryKeyCosineCredit` that matter once queries and keys are read; see there."""

    smoothing: Smoothing
    window: int
    num_clusters: int
    weights: SpanWeights
    temperature: float
    mixing: float
    anchor_ratio: float
    anchor_weight: float
    rest_weight: float
    seed: int

    def clusters(self, tokens: int) -> int:
        """How many parts a response is cut into: at least two tokens each."""
        return min(self.num_clusters, tokens // 2)


@dataclass(frozen=True, slots=True, eq=False)
class ScoredTokens:
    """What is known of the tokens of one response, padding cut off."""

    score: Float[np.ndarray, "token"]
    image: Float[np.ndarray, "token image"] | None
    """How near each is to each image token; only where spans are clusters."""
    paragraphs: Int[np.ndarray, "token"] | None = None
    """The number of its paragraph; only where spans are paragraphs."""


class Weighed(NamedTuple):
    """Of the tokens of one response."""

    weights: Float[np.ndarray, "token"]
    """Not yet normalised."""
    anchors: Bool[np.ndarray, "token"]
    load: Float[np.ndarray, "token"]
    """The score of its span."""


def weigh_spans(responses: Sequence[ScoredTokens], settings: SpanSettings) -> list[Weighed]:
    """Each of `responses` depends on that response alone."""
    # All graphs before all cuts: in turns, METIS and numpy empty each other's caches.
    graphs = [_graph(tokens, settings) for tokens in responses]
    spans = [_spans(tokens, graph, settings) for tokens, graph in zip(responses, graphs, strict=True)]
    return [_weigh(tokens.score, own, settings) for tokens, own in zip(responses, spans, strict=True)]


def span_means(values: Float[np.ndarray, "token"], spans: Int[np.ndarray, "token"]) -> Float[np.ndarray, "span"]:
    """The mean of each span's values; a span that no token has ranks below all others."""
    count = np.bincount(spans)
    means = np.bincount(spans, weights=values) / np.maximum(count, 1)
    return np.where(count > 0, means, -np.inf).astype(np.float32)


def softmax_weights(
    load: Float[np.ndarray, "span"],
    spans: Int[np.ndarray, "token"],
    *,
    temperature: float,
    mixing: float,
    low: float,
    high: float,
) -> Float[np.ndarray, "token"]:
    """``low + (high − low) · ((1 − mixing) · softmax(load / temperature)_j + mixing / M)`` of a token of span j of M.

    KAWHI: Han et al., arXiv 2603.27375, equation 15. Spans that no token has don't count. Not yet normalised.
    """
    shares = np.exp((load.astype(np.float64) - load.max()) / temperature)  # of the largest 1: none overflows
    mixed = (1 - mixing) * shares / shares.sum() + mixing / np.isfinite(load).sum()
    return (low + (high - low) * mixed)[spans].astype(np.float32)


def _graph(tokens: ScoredTokens, settings: SpanSettings) -> Graph | None:
    if settings.smoothing != "cluster" or settings.clusters(len(tokens.score)) <= 1:
        return None
    return nearest_neighbours(combined([similarity_strengths(tokens.image)]), neighbours=NEIGHBOURS)


def _spans(tokens: ScoredTokens, graph: Graph | None, settings: SpanSettings) -> Int[np.ndarray, "token"]:
    """The number of each token's span."""
    count = len(tokens.score)
    if tokens.paragraphs is not None:
        return tokens.paragraphs
    if graph is not None:
        return np.array(metis.partition(*graph, num_clusters=settings.clusters(count), seed=settings.seed))
    position = np.arange(count)
    return {"none": position, "window": position // settings.window, "cluster": 0 * position}[settings.smoothing]


def _weigh(score: Float[np.ndarray, "token"], spans: Int[np.ndarray, "token"], settings: SpanSettings) -> Weighed:
    load = span_means(score, spans)
    anchors = choose_anchors(score, spans, load, ratio=settings.anchor_ratio)
    low, high = settings.rest_weight, settings.anchor_weight
    if settings.weights == "softmax":
        sharpness = {"temperature": settings.temperature, "mixing": settings.mixing}
        weights = softmax_weights(load, spans, **sharpness, low=low, high=high)
    else:
        weights = weights_of(settings.weights, load, spans, anchors, low=low, high=high)
    return Weighed(weights, anchors, load[spans])
