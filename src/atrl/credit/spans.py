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
from atrl.credit.weights import WeightMap, choose_anchors, weights_of

NEIGHBOURS = 8
"""Edges that a token keeps where spans are clusters."""

Graph = tuple[Int[np.ndarray, "row"], Int[np.ndarray, "edge"], Int[np.ndarray, "edge"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanSettings:
    """The options of `QueryKeyCosineCredit` that matter once queries and keys are read; see there."""

    smoothing: Literal["window", "cluster", "none"]
    window: int
    num_clusters: int
    weights: WeightMap
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
    spans = [_spans(len(tokens.score), graph, settings) for tokens, graph in zip(responses, graphs, strict=True)]
    return [_weigh(tokens.score, own, settings) for tokens, own in zip(responses, spans, strict=True)]


def span_means(values: Float[np.ndarray, "token"], spans: Int[np.ndarray, "token"]) -> Float[np.ndarray, "span"]:
    """The mean of each span's values; a span that no token has ranks below all others."""
    count = np.bincount(spans)
    means = np.bincount(spans, weights=values) / np.maximum(count, 1)
    return np.where(count > 0, means, -np.inf).astype(np.float32)


def _graph(tokens: ScoredTokens, settings: SpanSettings) -> Graph | None:
    if settings.smoothing != "cluster" or settings.clusters(len(tokens.score)) <= 1:
        return None
    return nearest_neighbours(combined([similarity_strengths(tokens.image)]), neighbours=NEIGHBOURS)


def _spans(tokens: int, graph: Graph | None, settings: SpanSettings) -> Int[np.ndarray, "token"]:
    """The number of each token's span."""
    position = np.arange(tokens)
    if graph is not None:
        return np.array(metis.partition(*graph, num_clusters=settings.clusters(tokens), seed=settings.seed))
    return {"none": position, "window": position // settings.window, "cluster": 0 * position}[settings.smoothing]


def _weigh(score: Float[np.ndarray, "token"], spans: Int[np.ndarray, "token"], settings: SpanSettings) -> Weighed:
    load = span_means(score, spans)
    anchors = choose_anchors(score, spans, load, ratio=settings.anchor_ratio)
    weight_map, low, high = settings.weights, settings.rest_weight, settings.anchor_weight
    weights = weights_of(weight_map, load, spans, anchors, low=low, high=high)
    return Weighed(weights, anchors, load[spans])
