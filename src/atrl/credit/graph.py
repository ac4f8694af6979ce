"""The token graph that is cut into clusters."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

EdgeKind = Literal["attention", "similarity", "both"]


def attention_strengths(
    targets: Int[Tensor, "token neighbour"], strengths: Float[Tensor, "token neighbour"]
) -> Float[Tensor, "token token"]:
    """The sparse edges of one response's tokens as a symmetric matrix; an edge that either end kept is in it.

    Edges to tokens beyond the response, which padding leaves, have strength 0 and are dropped.
    """
    tokens = len(targets)
    inside = targets < tokens
    matrix = strengths.new_zeros(tokens, tokens)
    matrix.scatter_reduce_(1, targets.clamp_max(tokens - 1), strengths * inside, "amax")
    return torch.maximum(matrix, matrix.T)


def similarity_strengths(image: Float[Tensor, "token image"]) -> Float[Tensor, "token token"]:
    """Cosine of two tokens' rows of image attention; 0 where a row is empty."""
    rows = torch.nn.functional.normalize(image, dim=1)
    similarity = rows @ rows.T
    # Matrix products are symmetric only up to rounding; METIS wants both copies of an edge to weigh the same.
    return ((similarity + similarity.T) / 2).clamp_min(0)


def combined(parts: list[Float[Tensor, "token token"]]) -> Float[Tensor, "token token"]:
    """The mean of the strengths, each without self-edges and over its largest entry, so that none drowns another."""
    total = torch.zeros_like(parts[0])
    for part in parts:
        part = part.clone().fill_diagonal_(0)
        total += part / part.max().clamp_min(torch.finfo(part.dtype).tiny)
    return total / len(parts)


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
