"""PAPO's loss against explicit numbers, and its gradient against finite differences."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from credit_evidence import batch_of

from atrl.credit.base import PictureMask
from atrl.credit.papo import PapoCredit
from atrl.types import Evidence, MaskedView

LOGPROBS = torch.tensor([[log(0.5), log(0.9), log(0.2), 0.0]], dtype=torch.float64)
MASKED = torch.tensor([[log(0.25), log(0.9), log(0.8), 0.0]], dtype=torch.float64)


def loss(scheme, logprobs=LOGPROBS, masked=MASKED):
    blank = torch.zeros(logprobs.shape)
    return scheme.auxiliary_loss(logprobs, Evidence(blank, blank, {}, MaskedView(masked, blank)))


def test_the_divergence_by_hand():
    """d = log ½, 0, log 4 and, on padding, 0: ½ + log 2 − 1, 0 and 4 − log 4 − 1, maximised."""
    expected = [-0.1 * (log(2) - 0.5), 0, -0.1 * (3 - log(4)), 0]
    assert loss(PapoCredit(gamma=0.1, eta=0.0))[0].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_the_double_entropy_by_hand():
    """−log π − log π_mask of each token: −log of 0.125, 0.81 and 0.16."""
    expected = [-0.5 * log(0.125), -0.5 * log(0.81), -0.5 * log(0.16), 0]
    assert loss(PapoCredit(gamma=0.0, eta=0.5))[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_the_two_add_up():
    both = loss(PapoCredit(gamma=0.3, eta=0.2))
    torch.testing.assert_close(both, loss(PapoCredit(gamma=0.3, eta=0)) + loss(PapoCredit(gamma=0, eta=0.2)))


def test_the_estimator_averages_to_the_divergence():
    """Σ p·(q/p − log(q/p) − 1) is KL(p ‖ q) exactly, here 0.5·log 2 + 0.3·log 1.5 + 0.2·log(1/2.75)."""
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.25, 0.2, 0.55]).double()
    values = loss(PapoCredit(gamma=1.0, eta=0.0), p.log()[None], q.log()[None])[0]
    expected = 0.5 * log(2) + 0.3 * log(1.5) - 0.2 * log(2.75)
    assert -(p * values).sum().item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_flows_both_ways():
    """d/dlogπ = −γ(1 − e^d) − η and d/dlogπ_mask = −γ(e^d − 1) − η."""
    logprobs, masked = LOGPROBS.clone().requires_grad_(), MASKED.clone().requires_grad_()
    loss(PapoCredit(gamma=0.1, eta=0.03), logprobs, masked).sum().backward()
    ratios = [exp(m - p) for p, m in zip(LOGPROBS[0].tolist(), MASKED[0].tolist(), strict=True)]
    assert logprobs.grad[0].tolist() == pytest.approx([-0.1 * (1 - r) - 0.03 for r in ratios])
    assert masked.grad[0].tolist() == pytest.approx([-0.1 * (r - 1) - 0.03 for r in ratios])
    assert torch.autograd.gradcheck(lambda p, m: loss(PapoCredit(), p, m), (logprobs, masked))


def test_the_masked_gradient_can_be_left_out():
    logprobs, masked = LOGPROBS.clone().requires_grad_(), MASKED.clone().requires_grad_()
    scheme = PapoCredit(masked_gradient=False)
    torch.testing.assert_close(loss(scheme, logprobs, masked), loss(PapoCredit(), logprobs, masked))
    loss(scheme, logprobs, masked).sum().backward()
    assert masked.grad is None and (logprobs.grad != 0).any()
    assert PapoCredit().needs_masked_gradient and not scheme.needs_masked_gradient


def test_a_token_that_the_mask_makes_far_likelier_is_clipped():
    """d = 50, −50 and 100, whose eᵈ overflows: the estimate stops at 10, without a gradient. At −9 it has not yet."""
    logprobs = torch.tensor([[-50.0, 0.0, -100.0]], requires_grad=True)
    value = loss(PapoCredit(gamma=1.0, eta=0.0), logprobs, torch.tensor([[0.0, -50.0, 0.0]]))
    assert value[0].tolist() == [-10, -10, -10]
    value.sum().backward()
    assert logprobs.grad.tolist() == [[0, 0, 0]]
    unclipped = loss(PapoCredit(gamma=1.0, eta=0.0), torch.zeros(1, 1), torch.tensor([[-9.0]]))
    assert unclipped.item() == pytest.approx(-(exp(-9) + 9 - 1))


def test_what_it_asks_for():
    scheme = PapoCredit(mask_ratio=0.3, seed=2)
    assert scheme.picture_mask == PictureMask(ratio=0.3, seed=2)
    assert scheme.has_auxiliary_loss and scheme.is_uniform and scheme.requests == ()
    batch = batch_of([(3, 1), (2, 0)])
    assert torch.equal(scheme.assign(batch, None).weights, batch.response_mask.float())
    with pytest.raises(AssertionError, match="papo needs the policy's view"):
        scheme.auxiliary_loss(LOGPROBS, Evidence(LOGPROBS, LOGPROBS, {}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -0.1}, r"^credit\.gamma must be 0 \(off\) or more, got -0\.1"),
        ({"eta": -1.0}, r"^credit\.eta must be 0 \(off\) or more, got -1\.0"),
        ({"mask_ratio": 0.0}, r"^credit\.mask_ratio must be in \(0, 1\], got 0\.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        PapoCredit(**options)
