"""Clusters and densities → anchors → weights, for the tokens of one response."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

Ranking = Literal["mean", "peak"]
WeightMap = Literal["anchors", "load_map"]


def check_ratio(option: str, ratio: float, *, remedy: str = "the paper finds 0.15") -> None:
    """Raises ValueError for a share of tokens that is none or more than all."""
    if not 0 < ratio <= 1:
        raise ValueError(f"credit.{option} must be in (0, 1], got {ratio}: {remedy}")


def check_count(option: str, count: int, *, usual: int) -> None:
    """Raises ValueError for fewer than one of something; `usual` is the remedy."""
    if count < 1:
        raise ValueError(f"credit.{option} must be at least 1, got {count}: try {usual}")


def check_weights(anchor_ratio: float, anchor_weight: float, rest_weight: float) -> None:
    """Raises ValueError for a ratio or for weights that single nothing out."""
    check_ratio("anchor_ratio", anchor_ratio)
    check_levels(anchor_weight, rest_weight)


def check_levels(anchor_weight: float, rest_weight: float) -> None:
    """Raises ValueError for weights that favour the rest or are all zero."""
    if not 0 <= rest_weight <= anchor_weight or anchor_weight == 0:
        raise ValueError(
            f"credit.rest_weight must be between 0 and credit.anchor_weight > 0, got {rest_weight} and {anchor_weight}"
            ": try 1 and 3"
        )


def number_of(ratio: float, tokens: int) -> int:
    """round(ratio · tokens), halves up, and at least 1: how many tokens a ratio singles out of a response."""
    # Rounded twice: 0.35 · 90 is 31.4999… in binary, and its half must round up.
    return max(1, int(round(ratio * tokens, 6) + 0.5))


def perceptual_load(
    density: Float[np.ndarray, "token"], clusters: Int[np.ndarray, "token"], *, ranking: Ranking = "mean"
) -> Float[np.ndarray, "cluster"]:
    """Mean (or largest) density of each cluster over the mean density of the response; 1 everywhere if that is 0.

    A cluster id that no token has gets load 0. ``peak``: METIS balances sizes, so one strong reader among fillers
    gives its cluster a small mean; the largest density finds that cluster all the same.
    """
    count = np.bincount(clusters)
    mean = density.sum(dtype=np.float64) / len(density)
    if mean <= 0:
        return np.ones(len(count))
    if ranking == "peak":
        load = np.zeros(len(count))
        np.maximum.at(load, clusters, density)
        return load / mean
    return np.bincount(clusters, weights=density) / np.maximum(count, 1) / mean


def choose_anchors(
    density: Float[np.ndarray, "token"],
    clusters: Int[np.ndarray, "token"],
    load: Float[np.ndarray, "cluster"],
    *,
    ratio: float,
) -> Bool[np.ndarray, "token"]:
    """The round(ratio · tokens) anchors: whole clusters in order of load, the last one filled by token density.

    Halves round up, and a response has at least one anchor, or none where all densities are equal: then ties alone
    would choose. Elsewhere they go to the lower cluster id, then the earlier token.
    """
    if (density == density[:1]).all():
        return np.zeros(len(density), bool)
    rank = np.empty(len(load), np.int64)
    rank[(-load).argsort(kind="stable")] = np.arange(len(load))
    order = np.lexsort((-density, rank[clusters]))
    anchors = np.zeros(len(density), bool)
    anchors[order[: number_of(ratio, len(density))]] = True
    return anchors


def load_map(
    load: Float[np.ndarray, "cluster"], clusters: Int[np.ndarray, "token"], *, low: float, high: float
) -> Float[np.ndarray, "token"]:
    """A weight per token that grows with its cluster's load, linearly from `low` (least) to `high` (most loaded).

    The weights are not yet normalised. If all loads are equal, so are the weights.
    """
    present = load[clusters]
    least, most = present.min(), present.max()
    if most <= least:
        return np.ones(len(present), np.float32)
    return (low + (high - low) * (present - least) / (most - least)).astype(np.float32)


def weights_of(
    weight_map: WeightMap,
    load: Float[np.ndarray, "cluster"],
    clusters: Int[np.ndarray, "token"],
    anchors: Bool[np.ndarray, "token"],
    *,
    low: float,
    high: float,
) -> Float[np.ndarray, "token"]:
    """Weights, not yet normalised: `high` for anchors and `low` for the rest, or the `load_map` between the two."""
    if weight_map == "load_map":
        return load_map(load, clusters, low=low, high=high)
    return np.where(anchors, high, low).astype(np.float32)
