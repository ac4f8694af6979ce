"""Student's t, intervals over seeds and paired tests, against values worked out by hand or printed in tables."""

from __future__ import annotations

import math

import pytest

from atrl.report.sweep.statistics import Estimate, estimate, holm, paired, share_limits, t_cdf, t_quantile


@pytest.mark.parametrize(
    ("t", "freedom", "expected"),
    [
        (0.0, 5, 0.5),
        (1.0, 1, 0.75),  # Cauchy: 1/2 + atan(1)/π
        (-1.0, 1, 0.25),
        (1.0, 2, 0.5 + 1 / (2 * math.sqrt(3))),  # 1/2 + t/(2·√(2+t²))
        (math.sqrt(3), 3, 0.5 + (math.pi / 4 + 0.5) / math.pi),  # θ = π/4, sin θ · cos θ = 1/2
        (2.0, 4, 0.5 + 0.5 * (1 / math.sqrt(2)) * (1 + 0.25)),  # θ = π/4: sin θ (1 + cos²θ/2) / 2
    ],
)
def test_distribution_by_hand(t, freedom, expected):
    assert t_cdf(t, freedom) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("freedom", "printed"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_quantiles_of_the_printed_table(freedom, printed):
    """Two-sided 95 % points, as every textbook prints them."""
    assert t_quantile(0.975, freedom) == pytest.approx(printed, abs=5e-4)


def test_quantile_of_one_degree_in_closed_form():
    assert t_quantile(0.975, 1) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-9)
    assert t_quantile(0.5, 7) == pytest.approx(0.0, abs=1e-9)
    for probability in (0.4, 1.0):
        with pytest.raises(AssertionError, match=rf"got {probability}"):
            t_quantile(probability, 7)


def test_no_degree_of_freedom_is_refused():
    with pytest.raises(ValueError, match="at least 1 degree of freedom, got 0"):
        t_cdf(1.0, 0)


def test_intervals_by_hand():
    """Of 1, 2, 3: mean 2, s = 1, half 4.303/√3 = 2.484; a single value tells of no spread, and none of nothing."""
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.count) == (2.0, 3) and found.half == pytest.approx(2.4841, abs=1e-4)
    assert estimate([0.5]) == Estimate(0.5, None, 1)
    assert estimate([]) is None


def test_equal_values_have_no_interval():
    """It would have no width; 0.1 + 0.2 and 0.3, and the same a million times as large, differ by rounding alone."""
    assert estimate([0.5, 0.5, 0.5]) == Estimate(0.5, None, 3) and estimate([0.5, 0.5]).equal
    for scale in (1, 1e6):
        assert estimate([scale * (0.1 + 0.2), scale * 0.3]).half is None
    assert not estimate([0.5]).equal and not estimate([0.5, 0.5 + 1e-9]).equal


def test_limits_of_a_share_are_cut_and_its_half_width_is_not():
    """0.6 and 1: 0.8 ± 12.706·0.2 = 2.541."""
    found = estimate([0.6, 1.0])
    assert found.half == pytest.approx(2.5412, abs=1e-4) and share_limits(found) == (0.0, 1.0)
    assert share_limits(Estimate(0.9, 0.2, 3)) == pytest.approx((0.7, 1.0))
    assert share_limits(Estimate(0.9, None, 1)) == (0.9, 0.9)


def test_paired_by_hand():
    """0.1, 0.2, 0.3: mean 0.2, s = 0.1, t = 0.2·√3/0.1 = 3.4641; with 2 degrees p = 1 - t/√(2+t²) = 1 - √(12/14)."""
    found = paired([0.1, 0.2, 0.3])
    assert found.difference.mean == pytest.approx(0.2)
    assert found.t_p == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-9)
    assert found.sign_p == 0.25  # 2/2³


def test_sign_test_leaves_zeros_out():
    """Four up, one down, one level: 2·(1 + 5)/2⁵ = 0.375."""
    assert paired([0.1, 0.2, 0.1, 0.3, -0.1, 0.0]).sign_p == pytest.approx(0.375)


def test_differences_without_a_spread():
    """A t-test would be certain of them; 0.3 - 0.2 and 0.2 - 0.1 differ by rounding alone."""
    assert paired([0.0, 0.0]).t_p is None and paired([0.0, 0.0]).sign_p == 1.0
    assert paired([0.3 - 0.2, 0.2 - 0.1]).t_p is None
    assert paired([0.1, 0.1]).difference == Estimate(0.1, None, 2)


def test_a_p_value_is_never_below_0():
    """Means of 0.5 to 3 with s = 0.1 over 20 to 31 seeds: far out the closed form rounds to above 1 here and there."""
    found = [
        paired([mean / 10 + (-1) ** seed * 0.1 for seed in range(seeds)]).t_p
        for seeds in range(20, 32)
        for mean in range(5, 31)
    ]
    assert min(found) >= 0 and max(found) < 1e-12


def test_a_single_difference_has_no_test():
    found = paired([0.1])
    assert (found.difference, found.t_p, found.sign_p) == (Estimate(0.1, None, 1), None, None)
    assert paired([]) is None


def test_direction_does_not_change_the_p_value():
    assert paired([-0.1, -0.2, -0.3]).t_p == pytest.approx(paired([0.1, 0.2, 0.3]).t_p)


def test_holm_by_hand():
    """In rising order 0.01·4, 0.02·3, 0.03·2, and 0.04·1, which may not be below the 0.06 before it."""
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == [
        pytest.approx(0.06), pytest.approx(0.04), None, pytest.approx(0.06), pytest.approx(0.06),
    ]  # fmt: skip
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
