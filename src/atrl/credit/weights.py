"""Clusters and densities → anchors → weights, for the tokens of one response."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atrl.credit.base import number_of

Ranking = Literal["mean", "peak"]


def check_weights(anchor_ratio: float, anchor_weight: float, rest_weight: float) -> None:
    """Raises ValueError for a ratio or for weights that single nothing out."""
    if not 0 < anchor_ratio <= 1:
        raise ValueError(f"credit.anchor_ratio must be in (0, 1], got {anchor_ratio}: the paper finds 0.15")
    if not 0 <= rest_weight <= anchor_weight or anchor_weight == 0:
        raise ValueError(
            f"credit.rest_weight must be between 0 and credit.anchor_weight > 0, got {rest_weight} and {anchor_weight}"
        )


def perceptual_load(
    density: Float[Tensor, "token"], clusters: Int[Tensor, "token"], *, ranking: Ranking = "mean"
) -> Float[Tensor, "cluster"]:
    """Mean (or largest) density of each cluster over the mean density of the response; 1 everywhere if that is 0.

    A cluster id that no token has gets load 0. ``peak``: METIS balances sizes, so one strong reader among fillers
    gives its cluster a small mean; the largest density finds that cluster all the same.
    """
    count = clusters.bincount()
    total = torch.zeros(len(count), dtype=density.dtype, device=density.device)
    mean = density.mean()
    if mean <= 0:
        return torch.ones_like(total)
    if ranking == "peak":
        return total.scatter_reduce_(0, clusters, density, "amax") / mean
    return total.index_add_(0, clusters, density) / count.clamp_min(1) / mean


def choose_anchors(
    density: Float[Tensor, "token"], clusters: Int[Tensor, "token"], load: Float[Tensor, "cluster"], *, ratio: float
) -> Bool[Tensor, "token"]:
    """The round(ratio · tokens) anchors: whole clusters in order of load, the last one filled by token density.

    Halves round up, and a response has at least one anchor. Ties go to the lower cluster id, then the earlier token.
    """
    wanted = number_of(ratio, len(density))
    rank = torch.empty_like(load, dtype=torch.long)
    rank[load.argsort(descending=True, stable=True)] = torch.arange(len(load), device=load.device)
    by_density = density.argsort(descending=True, stable=True)
    order = by_density[rank[clusters[by_density]].argsort(stable=True)]
    anchors = torch.zeros(len(density), dtype=torch.bool, device=density.device)
    anchors[order[:wanted]] = True
    return anchors


def load_map(
    load: Float[Tensor, "cluster"], clusters: Int[Tensor, "token"], *, low: float, high: float
) -> Float[Tensor, "token"]:
    """A weight per token that grows with its cluster's load, linearly from `low` (least) to `high` (most loaded).

    The weights are not yet normalised. If all loads are equal, so are the weights.
    """
    present = load[clusters]
    least, most = present.min(), present.max()
    if most <= least:
        return torch.ones_like(present)
    return low + (high - low) * (present - least) / (most - least)
