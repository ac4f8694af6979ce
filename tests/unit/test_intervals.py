"""95 % intervals, from the formulas with z = 1.959964."""

from __future__ import annotations

import pytest

from atrl.evaluation.intervals import clustered_interval, wilson_interval


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        # p = 0: centre = half = (z²/20) / (1 + z²/10), so the ends are 0 and z²/(10 + z²) = 3.841459/13.841459.
        (0, (0.0, 0.2775328)),
        # p = 1/2: centre 1/2, half z·sqrt(1/40 + z²/400)/(1 + z²/10) = 1.959964·0.1860205/1.3841459 = 0.2634069.
        (5, (0.2365931, 0.7634069)),
        # p = 1: the mirror image of p = 0.
        (10, (0.7224672, 1.0)),
    ],
)
def test_wilson_of_ten(right, expected):
    assert wilson_interval(right, 10) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("right", "samples"), [(0, 0), (-1, 10), (11, 10)])
def test_wilson_needs_a_share(right, samples):
    with pytest.raises(ValueError, match=f"got {right} of {samples}"):
        wilson_interval(right, samples)


def test_clustered_by_hand():
    """0.4, 0.5, 0.6: mean 0.5, s = sqrt((0.01 + 0 + 0.01)/2) = 0.1, half = 1.959964·0.1/√3 = 0.1131586."""
    assert clustered_interval([0.4, 0.5, 0.6]) == pytest.approx((0.3868414, 0.6131586), abs=1e-6)


def test_clustered_is_cut_to_shares():
    assert clustered_interval([0.0, 1.0]) == (0.0, 1.0)
    assert clustered_interval([1.0, 1.0, 1.0]) == (1.0, 1.0)


def test_clustered_needs_two_problems():
    with pytest.raises(ValueError, match="at least 2 of them, got 1"):
        clustered_interval([0.5])
