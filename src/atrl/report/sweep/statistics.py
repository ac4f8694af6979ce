"""What a few seeds say: intervals and paired tests, from their formulas."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from atrl.evaluation.compare import mcnemar

ROUNDING = 1e-12
"""A spread that only rounding makes, beside a mean of up to 1; beside a larger one it is as much larger."""


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
    """A mean over seeds, and half the width of its 95 % interval.

    `half` is None where no spread is seen: of a single value, and of several that are all the same. It is never cut,
    also where the mean is of shares and the interval reaches beyond them (`share_limits`).
    """

    mean: float
    half: float | None
    count: int

    @property
    def equal(self) -> bool:
        """Whether there are several values, all the same but for rounding."""
        return self.count > 1 and self.half is None


def share_limits(value: Estimate) -> tuple[float, float]:
    """Both ends of the interval of a share, cut at 0 and 1; the mean twice where there is no interval."""
    half = value.half or 0.0
    return max(0.0, value.mean - half), min(1.0, value.mean + half)


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean ± t·s/√n with Student's t for n-1 degrees of freedom ("Student", Biometrika 6, 1908); None without values.

    Seeds are taken for independent draws of one normal distribution. Of equal values the formula would give an interval
    without width, as if another seed could bring nothing else; they get none.
    """
    if not values:
        return None
    count, mean = len(values), statistics.fmean(values)
    spread = statistics.stdev(values) if count > 1 else 0.0
    if spread <= ROUNDING * max(1.0, abs(mean)):
        return Estimate(mean, None, count)
    return Estimate(mean, t_quantile(0.975, count - 1) * spread / math.sqrt(count), count)


@dataclass(frozen=True, slots=True)
class Paired:
    """Differences from a baseline, seed by seed.

    Attributes:
        difference: their mean with its interval.
        t_p: two-sided p-value of the paired t-test; None for a single difference, and where all are the same, which
            shows no spread to compare their mean with.
        sign_p: of the exact sign test, which supposes nothing about the differences' distribution; None for a single
            one.
    """

    difference: Estimate
    t_p: float | None
    sign_p: float | None


def paired(differences: Sequence[float]) -> Paired | None:
    """The paired t-test and the exact sign test of `differences`; a single one has neither, and None is of none.

    t = mean·√n/s with n-1 degrees of freedom ("Student", Biometrika 6, 1908). The sign test leaves zeros out and is
    that of McNemar, with seeds for problems (Dixon and Mood, JASA 41, 1946): over n seeds its p-value is at least 2/2ⁿ,
    so that with fewer than six it can't be below 0.05.
    """
    found = estimate(differences)
    if found is None:
        return None
    if found.count < 2:
        return Paired(found, None, None)
    t_p = None
    if not found.equal:
        t = abs(found.mean) * math.sqrt(found.count) / statistics.stdev(differences)
        t_p = max(0.0, 2 * (1 - t_cdf(t, found.count - 1)))  # rounding may leave a cdf just above 1
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
