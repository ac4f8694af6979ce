"""The sums of `benchmarks/rollout.py`, and what it says of a run's memory."""

from __future__ import annotations

import math

import pytest

from tests.unit.test_step_benchmark import script, scripts_find_each_other  # noqa: F401


@pytest.fixture
def benchmark():
    return script("slope")


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


ROWS = [
    {"memory/host": f"{100 + 3 * step}", "memory/device": f"{7 + min(step, 9)}", "rollout/logprob_gap_max": "0.5"}
    for step in range(40)
]
"""The device's is the most so far, as in `metrics.csv`."""


def test_a_run_on_the_cpu_says_nothing_of_a_gpu() -> None:
    """Resident memory grows by 3 a step; its median is between that of the 20th and the 21st step."""
    found = script("rollout_memory").found_in(ROWS, None)
    assert (found["memory_slope_bytes_per_step"], found["memory_bytes"], found["memory_steps"]) == (3, 158, 40)
    assert found["training_logprob_max_difference"] == 0.5
    assert not [name for name in found if name.startswith("device")]


def test_on_a_gpu_what_is_held_after_steps_tells_growth_and_not_the_peak() -> None:
    """It falls by 2 a step, while the peak can only rise."""
    found = script("rollout_memory").found_in(ROWS, [1000.0 - 2 * step for step in range(40)])
    assert (found["device_slope_bytes_per_step"], found["device_bytes"]) == (-2, 961)
    assert (found["device_peak_bytes"], found["memory_slope_bytes_per_step"]) == (16, 3)
