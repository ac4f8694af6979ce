"""The sums of `benchmarks/rollout.py`."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "rollout.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("rollout_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_straight_line_has_its_slope_and_no_interval(benchmark) -> None:
    slope, low, high = benchmark.slope_with_interval([100.0 + 3 * step for step in range(57)])  # 10 blocks of 5
    assert slope == low == high == pytest.approx(3)


def test_slope_and_interval_by_hand(benchmark) -> None:
    """Four blocks of 1 at x = 0, 1, 2, 3 with y = 0, 2, 1, 3: Σ(x - 1.5)² = 5, Σ(x - 1.5)(y - 1.5) = 4, so b = 0.8.

    Residuals are -0.3, 0.9, -0.9, 0.3, their squares add up to 1.8, and √(1.8 / 2 / 5) = √0.18.
    """
    slope, low, high = benchmark.slope_with_interval([0.0, 2.0, 1.0, 3.0], blocks=4)
    margin = benchmark.T_975 * math.sqrt(0.18)
    assert slope == pytest.approx(0.8)
    assert (low, high) == (pytest.approx(0.8 - margin), pytest.approx(0.8 + margin))


def test_noise_within_a_block_does_not_count_as_more_values(benchmark) -> None:
    """Doubling every value leaves blocks and interval as they are, a step's slope halved."""
    values = [5.0, 1.0, 4.0, 2.0, 8.0, 3.0, 7.0, 6.0, 9.0, 0.0]
    once = benchmark.slope_with_interval(values)
    twice = benchmark.slope_with_interval([value for value in values for _ in range(2)])
    assert twice == pytest.approx([bound / 2 for bound in once])
