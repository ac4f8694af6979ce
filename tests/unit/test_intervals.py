"""95 % intervals, from the formulas with z = 1.959964."""

from __future__ import annotations

import pytest

from atrl.evaluation.intervals import clustered_interval, difference_interval, wilson_interval


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


def test_equal_shares_prove_nothing():
    """Several samples of each of ten problems, all wrong, half right or all right: Wilson's of ten, as above."""
    for share, expected in ((0.0, (0.0, 0.2775328)), (0.5, (0.2365931, 0.7634069)), (1.0, (0.7224672, 1.0))):
        assert clustered_interval([share] * 10) == pytest.approx(expected, abs=1e-6)


def test_clustered_needs_two_problems():
    with pytest.raises(ValueError, match="at least 2 of them, got 1"):
        clustered_interval([0.5])


@pytest.mark.parametrize(
    ("first", "second", "printed"),
    [
        ((48, 80), (56, 70), (0.0524, 0.3339)),
        ((3, 10), (9, 10), (0.1705, 0.8090)),
        ((0, 29), (5, 56), (-0.0381, 0.1926)),
        ((0, 10), (0, 10), (-0.2775, 0.2775)),  # both Wilson intervals are from 0 to 0.2775
        ((0, 10), (10, 10), (0.6075, 1.0)),
    ],
)
def test_differences_as_newcombe_prints_them(first, second, printed):
    """Table II of the paper, method 10, and its mirror image."""
    one, two = first[0] / first[1], second[0] / second[1]
    found = difference_interval(one, wilson_interval(*first), two, wilson_interval(*second))
    assert found == pytest.approx(printed, abs=5e-5)
    mirrored = difference_interval(two, wilson_interval(*second), one, wilson_interval(*first))
    assert mirrored == pytest.approx((-found[1], -found[0]))


def test_a_difference_of_any_intervals_by_hand():
    """0.2 less √(0.03² + 0.04²) and plus √(0.05² + 0.12²)."""
    assert difference_interval(0.4, (0.28, 0.44), 0.6, (0.57, 0.65)) == pytest.approx((0.15, 0.33))
