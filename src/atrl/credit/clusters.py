"""Densities and token graphs → clusters → weights, response by response. Arrays in, arrays out; no torch, so that
worker processes start fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from atrl.credit import metis
from atrl.credit.graph import EdgeKind, attention_strengths, combined, nearest_neighbours, similarity_strengths
from atrl.credit.weights import Ranking, WeightMap, choose_anchors, perceptual_load, weights_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """The options of `AtrlCredit` that matter once attention is read; see there."""

    edges: EdgeKind
    neighbours: int
    num_clusters: int | Literal["auto"]
    rank_clusters: Ranking
    weights: WeightMap
    anchor_ratio: float
    anchor_weight: float
    rest_weight: float
    seed: int

    def clusters(self, tokens: int) -> int:
        """How many parts a response is cut into: at least two tokens each, √T of T tokens where that is "auto"."""
        wanted = round(tokens**0.5) if self.num_clusters == "auto" else self.num_clusters
        return min(wanted, tokens // 2)


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows:
    """What is known of the tokens of one response, padding cut off."""

    density: Float[np.ndarray, "token"]
    image: Float[np.ndarray, "token image"]
    targets: Int[np.ndarray, "layer token neighbour"] | None
    strengths: Float[np.ndarray, "layer token neighbour"] | None


def weigh_all(
    responses: Sequence[TokenRows], settings: ClusterSettings
) -> list[tuple[Float[np.ndarray, "token"], Bool[np.ndarray, "token"]]]:
    """Weights, not yet normalised, and anchors of each of `responses`, which depend on that response alone."""
    clusters = partition_all(responses, settings)
    return [weigh(rows.density, own, settings) for rows, own in zip(responses, clusters, strict=True)]


def weigh(
    density: Float[np.ndarray, "token"], clusters: Int[np.ndarray, "token"], settings: ClusterSettings
) -> tuple[Float[np.ndarray, "token"], Bool[np.ndarray, "token"]]:
    """Weights, not yet normalised, and anchors of one response that is cut into `clusters`."""
    load = perceptual_load(density, clusters, ranking=settings.rank_clusters)
    anchors = choose_anchors(density, clusters, load, ratio=settings.anchor_ratio)
    weight_map, low, high = settings.weights, settings.rest_weight, settings.anchor_weight
    return weights_of(weight_map, load, clusters, anchors, low=low, high=high), anchors


def partition_all(responses: Sequence[TokenRows], settings: ClusterSettings) -> list[Int[np.ndarray, "token"]]:
    """The cluster of every token of each of `responses`."""
    counts = [settings.clusters(len(rows.density)) for rows in responses]
    # All graphs before all cuts: in turns, METIS and numpy empty each other's caches, which costs a fifth in time.
    graphs = [token_graph(rows, settings) if count > 1 else None for rows, count in zip(responses, counts, strict=True)]
    return [
        np.zeros(len(rows.density), np.int64)
        if graph is None
        else np.array(metis.partition(*graph, num_clusters=count, seed=settings.seed))
        for rows, graph, count in zip(responses, graphs, counts, strict=True)
    ]


def token_graph(
    rows: TokenRows, settings: ClusterSettings
) -> tuple[Int[np.ndarray, "row"], Int[np.ndarray, "edge"], Int[np.ndarray, "edge"]]:
    """The graph that is cut, as `nearest_neighbours` gives it."""
    parts = []
    if settings.edges in ("attention", "both"):
        parts.append(attention_strengths(rows.targets, rows.strengths))
    if settings.edges in ("similarity", "both"):
        parts.append(similarity_strengths(rows.image))
    return nearest_neighbours(combined(parts), neighbours=settings.neighbours)


def cluster_links(
    starts: Int[np.ndarray, "row"],
    targets: Int[np.ndarray, "edge"],
    weights: Int[np.ndarray, "edge"],
    clusters: Int[np.ndarray, "token"],
) -> Int[np.ndarray, "cluster cluster"]:
    """How much edge weight lies between two clusters, and on the diagonal within one; each edge counts once.

    Args:
        starts, targets, weights: of a `token_graph`, where each edge stands in both of its rows.
        clusters: as it was cut.
    """
    count = int(clusters.max()) + 1
    sources = np.repeat(clusters, np.diff(starts))
    links = np.bincount(sources * count + clusters[targets], weights=weights, minlength=count * count)
    links = links.reshape(count, count).astype(np.int64)
    np.fill_diagonal(links, links.diagonal() // 2)
    return links
