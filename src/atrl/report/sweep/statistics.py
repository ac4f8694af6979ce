"""What a few seeds say: intervals and paired tests, from their formulas."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from atrl.evaluation.compare import mcnemar

ROUNDING = 1e-12
"""A spread of shares that only rounding makes."""


def t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) of Student's t with `freedom` degrees of freedom.

    In closed form, with θ = atan(t/√ν): Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.

    Raises:
        ValueError: without a degree of freedom.
    """
    if freedom < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, got {freedom}: it takes two seeds")
    theta = math.atan(t / math.sqrt(freedom))
    square = math.cos(theta) ** 2
    odd = freedom % 2 == 1
    term, total = 1.0, 0.0
    for power in range(freedom // 2):
        total += term
        term *= square * (2 * power + 2) / (2 * power + 3) if odd else square * (2 * power + 1) / (2 * power + 2)
    inside = 2 / math.pi * (theta + math.sin(theta) * math.cos(theta) * total) if odd else math.sin(theta) * total
    return (1 + inside) / 2


def t_quantile(probability: float, freedom: int) -> float:
    """The t that `t_cdf` gives `probability`, at least 1/2, found by halving."""
    assert 0.5 <= probability < 1, f"a probability in [0.5, 1), got {probability}"
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return high


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds, and half the width of its 95 % interval; None for a single seed, which tells of no spread."""

    mean: float
    half: float | None
    count: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean ± t·s/√n with Student's t for n-1 degrees of freedom ("Student", Biometrika 6, 1908); None without values.

    Seeds are taken for independent draws of one normal distribution.
    """
    if not values:
        return None
    count, mean = len(values), statistics.fmean(values)
    if count < 2:
        return Estimate(mean, None, count)
    return Estimate(mean, t_quantile(0.975, count - 1) * statistics.stdev(values) / math.sqrt(count), count)


@dataclass(frozen=True, slots=True)
class Paired:
    """Differences from a baseline, seed by seed.

    Attributes:
        difference: their mean with its interval.
        t_p: two-sided p-value of the paired t-test; None where all differences are the same, which shows no spread to
            compare their mean with.
        sign_p: of the exact sign test, which supposes nothing about the differences' distribution.
    """

    difference: Estimate
    t_p: float | None
    sign_p: float


def paired(differences: Sequence[float]) -> Paired | None:
    """The paired t-test and the exact sign test of `differences`; None for fewer than two.

    t = mean·√n/s with n-1 degrees of freedom ("Student", Biometrika 6, 1908). The sign test leaves zeros out and is
    that of McNemar, with seeds for problems (Dixon and Mood, JASA 41, 1946): over n seeds its p-value is at least 2/2ⁿ,
    so that with fewer than six it can't be below 0.05.
    """
    if len(differences) < 2:
        return None
    found = estimate(differences)
    spread, t_p = statistics.stdev(differences), None
    if spread > ROUNDING:
        t_p = 2 * (1 - t_cdf(abs(found.mean) * math.sqrt(len(differences)) / spread, len(differences) - 1))
    sign_p = mcnemar(sum(value > 0 for value in differences), sum(value < 0 for value in differences))
    return Paired(found, t_p, sign_p)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for being several (S. Holm, Scandinavian Journal of Statistics 6, 1979); None stays None.

    In rising order the k-th of m is multiplied by m-k+1, and none may be below the one before it.
    """
    known = sorted((value, place) for place, value in enumerate(values) if value is not None)
    adjusted: list[float | None] = [None] * len(values)
    least = 0.0
    for rank, (value, place) in enumerate(known):
        least = max(least, min(1.0, value * (len(known) - rank)))
        adjusted[place] = least
    return adjusted
