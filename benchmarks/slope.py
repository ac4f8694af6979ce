"""Whether something grows over the steps of a run; for scripts here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

BLOCKS = 10
"""Neighbouring steps' memory is not independent, so that of a block of them counts as one value."""

T_975 = 2.306
"""Student's t at 97.5 % with BLOCKS - 2 = 8 degrees of freedom."""


def slope_with_interval(values: Sequence[float], blocks: int = BLOCKS) -> tuple[float, float, float]:
    """Least-squares slope a step, and its 95 % interval, from the means of `blocks` consecutive blocks of steps.

    With block centres x and means y: b = Σ(x - x̄)(y - ȳ) / Σ(x - x̄)², and √(Σr² / (blocks - 2) / Σ(x - x̄)²) is its
    standard error, with residuals r (any textbook on regression). What does not fill a block is left out.
    """
    size = len(values) // blocks
    assert size > 0, f"{len(values)} values can't be cut into {blocks} blocks"
    y = [statistics.fmean(values[block * size : (block + 1) * size]) for block in range(blocks)]
    x = [block * size for block in range(blocks)]
    middle, mean = statistics.fmean(x), statistics.fmean(y)
    spread = sum((a - middle) ** 2 for a in x)
    slope = sum((a - middle) * (b - mean) for a, b in zip(x, y, strict=True)) / spread
    residuals = sum((b - mean - slope * (a - middle)) ** 2 for a, b in zip(x, y, strict=True))
    margin = T_975 * math.sqrt(residuals / (blocks - 2) / spread)
    return slope, slope - margin, slope + margin


def growth(name: str, values: Sequence[float]) -> dict[str, object]:
    """For a JSON: slope and interval of a quantity, its first quarter left out, and its median."""
    slope, low, high = slope_with_interval(values[len(values) // 4 :])
    return {
        f"{name}_slope_bytes_per_step": round(slope),
        f"{name}_slope_ci95": [round(low), round(high)],
        f"{name}_bytes": round(statistics.median(values)),
    }
