"""95 % intervals for accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence

_Z95 = 1.959963984540054


def wilson_interval(right: float, samples: int) -> tuple[float, float]:
    """The Wilson score interval of a share, for independent samples.

    ``(p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)`` with z = 1.96; E. B. Wilson, JASA 22 (1927).

    Raises:
        ValueError: without a sample, or with more right than there are samples.
    """
    if samples < 1 or not 0 <= right <= samples:
        raise ValueError(f"an interval needs 0 <= right <= samples and a sample, got {right} of {samples}")
    share, square = right / samples, _Z95**2 / samples
    centre = (share + square / 2) / (1 + square)
    half = _Z95 * math.sqrt(share * (1 - share) / samples + square / (4 * samples)) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_interval(shares: Sequence[float]) -> tuple[float, float]:
    """The interval of the mean of per-problem accuracies, each over several samples of the same problem.

    Samples of one problem are not independent, so the problems are what is counted: mean ± 1.96·s/√n with the
    standard deviation s between problems (Miller, "Adding error bars to evals", arXiv 2411.00640, section 2.2),
    cut to [0, 1]. Where all are the same the formula gives an interval without width, as if another problem could bring
    nothing else; they get the Wilson interval of as many independent samples as there are problems.

    Raises:
        ValueError: with fewer than two problems.
    """
    count = len(shares)
    if count < 2:
        raise ValueError(f"an interval over problems needs at least 2 of them, got {count}: score more problems")
    mean = sum(shares) / count
    if min(shares) == max(shares):
        return wilson_interval(shares[0] * count, count)
    variance = sum((share - mean) ** 2 for share in shares) / (count - 1)
    half = _Z95 * math.sqrt(variance / count)
    return max(0.0, mean - half), min(1.0, mean + half)


def difference_interval(
    first: float, first_ci95: tuple[float, float], second: float, second_ci95: tuple[float, float]
) -> tuple[float, float]:
    """The 95 % interval of ``second - first``, two independent shares, each with its own 95 % interval.

    With shares p₁ in [l₁, u₁] and p₂ in [l₂, u₂], and d = p₂ - p₁: ``d - sqrt((p₂-l₂)² + (u₁-p₁)²)`` to
    ``d + sqrt((u₂-p₂)² + (p₁-l₁)²)``. Of two Wilson intervals that is method 10 of R. G. Newcombe, Statistics in
    Medicine 17 (1998), 873-890; of others the same by G. Y. Zou and A. Donner, Statistics in Medicine 27 (2008). Two
    shares of the same problems are not independent: where what is right in the one is right in the other more often
    than chance has it, which is the rule, the interval is too wide.
    """
    change = second - first
    below = math.hypot(second - second_ci95[0], first_ci95[1] - first)
    above = math.hypot(second_ci95[1] - second, first - first_ci95[0])
    return change - below, change + above
