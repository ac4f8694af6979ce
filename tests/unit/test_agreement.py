"""Areas under curves and bimodality, by hand."""

from __future__ import annotations

import pytest
import torch

from atrl.credit.agreement import area_under_curve, bimodality


@pytest.mark.parametrize(
    ("scores", "positive", "area"),
    [
        ([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1], 1.0),
        ([1.0, 2.0, 3.0, 4.0], [1, 1, 0, 0], 0.0),
        ([1.0, 2.0, 3.0, 4.0], [0, 1, 0, 1], 0.75),  # of the four pairs only (2, 3) is the wrong way round
        ([1.0, 1.0, 1.0], [0, 1, 1], 0.5),  # ties count half
        ([1.0, 2.0, 2.0], [0, 1, 0], 0.75),  # one pair won, one tied
    ],
)
def test_area_by_hand(scores, positive, area):
    assert area_under_curve(torch.tensor(scores), torch.tensor(positive).bool()) == pytest.approx(area)


def test_area_is_the_share_of_pairs():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 9, (200,), generator=generator).float()
    positive = torch.rand(200, generator=generator) < 0.2
    difference = scores[positive][:, None] - scores[~positive][None]
    expected = ((difference > 0).double() + 0.5 * (difference == 0)).mean().item()
    assert area_under_curve(scores, positive) == pytest.approx(expected)


@pytest.mark.parametrize("positive", [[0, 0], [1, 1]])
def test_without_both_kinds_there_is_no_area(positive):
    assert area_under_curve(torch.tensor([1.0, 2.0]), torch.tensor(positive).bool()) is None


def test_bimodality_by_hand():
    """Two values in halves: skewness 0, kurtosis 1. Of [0, 0, 0, 4]: mean 1, variance 3, third moment 6, fourth 21, so
    skewness² = 36/27 and kurtosis 21/9: (4/3 + 1)/(7/3) = 1. A fine grid is nearly uniform: 5/9."""
    assert bimodality(torch.tensor([0.0, 1.0, 0.0, 1.0])) == pytest.approx(1.0)
    assert bimodality(torch.tensor([0.0, 0.0, 0.0, 4.0])) == pytest.approx(1.0)
    assert bimodality(torch.arange(10000.0)) == pytest.approx(5 / 9, abs=1e-4)
    assert bimodality(torch.ones(4)) is None
    assert isinstance(bimodality(torch.arange(4.0)), float)  # as it is logged
