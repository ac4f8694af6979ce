"""How well a scheme's scores and anchors find the tokens that read the picture, and how its scores are spread."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def area_under_curve(scores: Float[Tensor, "token"], positive: Bool[Tensor, "token"]) -> float | None:
    """Chance that a positive token scores higher than another, ties counting half; None if there is only one kind.

    The Mann-Whitney statistic over the number of pairs (Hanley and McNeil, Radiology 143(1), 1982).
    """
    yes, no = int(positive.sum()), int((~positive).sum())
    if yes == 0 or no == 0:
        return None
    _, rank, count = scores.double().unique(return_inverse=True, return_counts=True)
    # Of tokens that tie each gets the mean of their ranks, counted from 1.
    last = count.cumsum(0).double()
    mean_rank = last - (count - 1) / 2
    total = mean_rank[rank][positive].sum()
    return float((total - yes * (yes + 1) / 2) / (yes * no))


def bimodality(scores: Float[Tensor, "token"]) -> float | None:
    """Sarle's coefficient ``(skewness² + 1) / kurtosis``; 5/9 of a uniform, 1/3 of a normal, 1 of a two-valued one.

    Population moments, without the correction for small samples. None if all scores are equal.
    """
    centred = scores.double() - scores.double().mean()
    variance = centred.square().mean()
    if variance <= 0:
        return None
    skewness = centred.pow(3).mean() / variance.pow(1.5)
    return float((skewness.square() + 1) / (centred.pow(4).mean() / variance.square()))
