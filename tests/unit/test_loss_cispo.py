"""CISPO by hand."""

from __future__ import annotations

from math import log

import pytest
import torch

from atrl.loss.cispo import ClippedWeightLoss


@pytest.mark.parametrize(
    ("bounds", "advantage", "ratio", "weight", "clipped"),
    [
        ({}, 1.0, 2.0, 2.0, False),
        ({}, 1.0, 7.0, 5.0, True),  # at most 1 + 4, and the gradient stays
        ({}, -1.0, 7.0, 5.0, True),  # whatever the sign: no token is let go
        ({}, 1.0, 0.01, 0.01, False),  # no lower bound
        ({}, -2.0, 0.5, 0.5, False),
        ({"clip_low": 0.2, "clip_high": 0.28}, 1.0, 1.5, 1.28, True),
        ({"clip_low": 0.2, "clip_high": 0.28}, -1.0, 0.5, 0.8, True),
        ({"clip_low": 0.2, "clip_high": 0.28}, 1.0, 0.5, 0.8, True),
        ({"clip_low": 5.0}, 1.0, 0.01, 0.01, False),  # 1 - 5 is below every ratio
    ],
)
def test_by_hand(bounds, advantage, ratio, weight, clipped):
    """The loss is -w·A·logprob with w a constant, so its gradient is -w·A."""
    old = torch.tensor([[-1.3]], dtype=torch.float64)
    logprobs = (old + log(ratio)).requires_grad_()
    token = ClippedWeightLoss(**bounds)(logprobs, old, torch.full_like(old, advantage), torch.ones(1, 1).bool())
    token.loss.sum().backward()
    assert token.loss.item() == pytest.approx(-weight * advantage * (-1.3 + log(ratio)), abs=1e-12)
    assert logprobs.grad.item() == pytest.approx(-weight * advantage, abs=1e-12)
    assert token.clipped.item() is clipped


def test_at_ratio_one_nothing_counts_as_clipped():
    """exp(0) is exactly 1, and so is its bound."""
    logprobs = torch.linspace(-9, 0, 50)[None]
    token = ClippedWeightLoss()(logprobs, logprobs, torch.ones(1, 50), torch.ones(1, 50).bool())
    assert not token.clipped.any()


@pytest.mark.parametrize("name", ["clip_low", "clip_high"])
def test_bounds_are_checked(name):
    with pytest.raises(ValueError, match=rf"algorithm\.loss\.{name} must be positive, got 0\.0: [14]\.0 is usual"):
        ClippedWeightLoss(**{name: 0.0})
