"""The token graph that is cut into clusters."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Edges = Literal["attention", "similarity", "both"]


def edge_strengths(
    response: Float[Tensor, "token token"], image: Float[Tensor, "layer head token image"], *, edges: Edges
) -> Float[Tensor, "token token"]:
    """Symmetric, non-negative strengths in [0, 1] with a zero diagonal, for the tokens of one response.

    ``attention``: response→response attention, symmetrised as (a + aᵀ)/2. ``similarity``: cosine of two tokens' rows
    of image attention over all heads and layers. ``both``: their mean. Each is divided by its largest entry, so that
    neither drowns the other.
    """
    parts = []
    if edges in ("attention", "both"):
        parts.append((response + response.T) / 2)
    if edges in ("similarity", "both"):
        rows = torch.nn.functional.normalize(image.permute(2, 0, 1, 3).flatten(1), dim=1)
        parts.append((rows @ rows.T).clamp_min(0))
    total = torch.zeros_like(response)
    for part in parts:
        part = part.clone().fill_diagonal_(0)
        total += part / part.max().clamp_min(torch.finfo(part.dtype).tiny)
    # Matrix products are symmetric only up to rounding; METIS wants both copies of an edge to weigh the same.
    return (total + total.T) / (2 * len(parts))


def nearest_neighbours(
    strengths: Float[Tensor, "token token"], *, neighbours: int
) -> tuple[list[int], list[int], list[int]]:
    """The graph in compressed rows (starts, targets, integer weights): an edge where either end ranks the other in
    its strongest `neighbours`.

    METIS wants integer weights; strengths map to 1 … 1000, relative to the strongest edge. Ties go to the lower index.
    """
    tokens = strengths.shape[0]
    kept = min(neighbours, tokens - 1)
    order = strengths.argsort(dim=1, descending=True, stable=True)[:, :kept]
    chosen = torch.zeros_like(strengths, dtype=torch.bool).scatter_(1, order, True) & (strengths > 0)
    chosen |= chosen.T.clone()
    scale = strengths.max().clamp_min(torch.finfo(strengths.dtype).tiny)
    weights = (1 + 999 * strengths / scale).round().long()
    starts = [0, *chosen.sum(dim=1).cumsum(0).tolist()]
    return starts, chosen.nonzero()[:, 1].tolist(), weights[chosen].tolist()
