"""SAPO by hand: with τ a multiple of ln 3 the sigmoid is a simple fraction."""

from __future__ import annotations

from math import log

import pytest
import torch

from atrl.loss.sapo import SoftAdaptiveLoss

LN3 = log(3)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient"),
    [
        (1.0, 1.0, -2 / LN3, -1.0),  # σ(0) = 1/2: (4/τ)/2, and 4·¼·1 = 1 whatever τ
        (-1.0, 1.0, 1 / LN3, 1.0),
        (3.0, 1.0, -6 / LN3, -3.0),
        (1.0, 2.0, -3 / LN3, -1.5),  # σ(ln 3) = 3/4: (4/ln 3)·3/4, and 4·3/16·2
        (-1.0, 2.0, 1.8 / LN3, 0.72),  # σ(2 ln 3) = 9/10: (2/ln 3)·9/10, and 4·9/100·2
        (-1.0, 0.5, 0.5 / LN3, 0.375),  # σ(-ln 3) = 1/4: (2/ln 3)/4, and 4·3/16·½
        (1.0, 3.0, -3.6 / LN3, -1.08),  # σ(2 ln 3) = 9/10: (4/ln 3)·9/10, and 4·9/100·3
        (0.0, 3.0, 0.0, 0.0),
    ],
)
def test_by_hand(advantage, ratio, loss, gradient):
    """τ is ln 3 for positive advantages, 2 ln 3 for others. d loss/d logprob = -4·p·(1-p)·r·A."""
    old = torch.tensor([[-1.3]], dtype=torch.float64)
    logprobs = (old + log(ratio)).requires_grad_()
    soft = SoftAdaptiveLoss(temperature_positive=LN3, temperature_negative=2 * LN3)
    token = soft(logprobs, old, torch.full_like(old, advantage), torch.ones(1, 1).bool())
    token.loss.sum().backward()
    assert token.loss.item() == pytest.approx(loss, abs=1e-12)
    assert logprobs.grad.item() == pytest.approx(gradient, abs=1e-12)
    assert not token.clipped.any()


def test_the_gradient_fades_on_both_sides_and_sooner_for_bad_tokens():
    """With the published temperatures; the weight 4·p·(1-p) of ``r·A`` is 1 at ratio 1 and falls from there."""
    ratios = torch.tensor([[0.25, 0.5, 1.0, 2.0, 4.0, 8.0]], dtype=torch.float64)
    weights = []
    for sign in (1.0, -1.0):
        logprobs = ratios.log().requires_grad_()
        token = SoftAdaptiveLoss()(
            logprobs, torch.zeros_like(ratios), torch.full_like(ratios, sign), torch.ones(1, 6).bool()
        )
        token.loss.sum().backward()
        weights.append((-sign * logprobs.grad / ratios)[0])
    for weight in weights:
        assert weight[2].item() == pytest.approx(1.0)
        assert (weight[:3].diff() > 0).all() and (weight[2:].diff() < 0).all() and (weight > 0).all()
    off_policy = torch.tensor([0, 1, 3, 4, 5])
    assert (weights[1][off_policy] < weights[0][off_policy]).all()


@pytest.mark.parametrize("name", ["temperature_positive", "temperature_negative"])
def test_temperatures_are_checked(name):
    with pytest.raises(ValueError, match=rf"algorithm\.loss\.{name} must be positive, got 0\.0: 1\.0"):
        SoftAdaptiveLoss(**{name: 0.0})
