"""Clusters and densities → anchors → weights, for the tokens of one response."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def perceptual_load(density: Float[Tensor, "token"], clusters: Int[Tensor, "token"]) -> Float[Tensor, "cluster"]:
    """Mean density of each cluster over the mean density of the response; 1 everywhere if that mean is 0.

    A cluster id that no token has gets load 0.
    """
    count = clusters.bincount()
    total = torch.zeros(len(count), dtype=density.dtype, device=density.device).index_add_(0, clusters, density)
    mean = density.mean()
    if mean <= 0:
        return torch.ones_like(total)
    return total / count.clamp_min(1) / mean


def choose_anchors(
    density: Float[Tensor, "token"], clusters: Int[Tensor, "token"], load: Float[Tensor, "cluster"], *, ratio: float
) -> Bool[Tensor, "token"]:
    """The round(ratio · tokens) anchors: whole clusters in order of load, the last one filled by token density.

    Halves round up, and a response has at least one anchor. Ties go to the lower cluster id, then the earlier token.
    """
    # Rounded twice: 0.35 · 90 is 31.4999… in binary, and its half must round up.
    wanted = max(1, int(round(ratio * len(density), 6) + 0.5))
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
