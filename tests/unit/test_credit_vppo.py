"""VPPO's filter and scale."""

from __future__ import annotations

import pytest
import torch
from credit_evidence import batch_of

from atrl.credit.base import PictureMask
from atrl.credit.vppo import VppoCredit, dependency_scale
from atrl.types import Evidence, MaskedView

DIVERGENCE = torch.tensor([[0.1, 0.5, 0.0, 0.3, 0.1], [0.4, 0.2, 0.0, 9.0, 9.0], [0.5, 0.5, 0.5, 0.4, 0.1]])
BATCH = batch_of([(5, 4), (3, 4), (5, 4)])


def assign(scheme, divergence=DIVERGENCE):
    zeros = torch.zeros(divergence.shape)
    return scheme.assign(BATCH, Evidence(zeros, zeros, {}, MaskedView(zeros, divergence)))


def test_weights_and_scales_by_hand():
    """Tokens: 2 of five, 1 of three (round(1.2)), the first 2 of a tie.

    Means S = 0.2, 0.2 and 0.4, shares 0, 0 and 1, of mean 1/3; high = 0.9 + 0.1·3 = 1.2.
    """
    output = assign(VppoCredit())
    expected = torch.tensor([[0, 2.5, 0, 2.5, 0], [3, 0, 0, 0, 0], [2.5, 2.5, 0, 0, 0]])
    torch.testing.assert_close(output.weights, expected)
    torch.testing.assert_close(output.trajectory_scale, torch.tensor([0.9, 0.9, 1.2]))


def test_scale_between_the_ends():
    """S = 1, 2 and 5: shares 0, 1/4, 1 of mean 5/12; high = 0.8 + 0.2·12/5 = 1.28, the middle 0.8 + 0.48/4."""
    scale = dependency_scale(torch.tensor([[1.0], [2.0], [5.0]]), torch.ones(3, 1, dtype=torch.bool), low=0.8)
    torch.testing.assert_close(scale, torch.tensor([0.8, 0.92, 1.28]))


def test_equal_rollouts_and_untrained_ones_keep_their_advantage():
    mask = torch.tensor([[True], [True], [False]])
    assert dependency_scale(torch.tensor([[2.0], [2.0], [9.0]]), mask, low=0.5).tolist() == [1, 1, 1]
    scale = dependency_scale(torch.tensor([[0.0], [2.0], [9.0]]), mask, low=0.5)
    torch.testing.assert_close(scale, torch.tensor([0.5, 1.5, 1.0]))
    assert dependency_scale(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool), low=0.5).tolist() == [1]


def test_a_rollout_without_a_picture_is_weighed_evenly():
    """Whatever rounding leaves in its divergence; its mean is 0."""
    divergence = DIVERGENCE.clone()
    divergence[1] = torch.tensor([2e-8, -3e-8, 5e-7, 0.0, 0.0])
    output = assign(VppoCredit(), divergence)
    assert output.weights[1].tolist() == [1, 1, 1, 0, 0] and not output.anchors[1].any()
    # S = 0.2, 0 and 0.4: shares 1/2, 0 and 1 of mean 1/2, high = 1.1.
    torch.testing.assert_close(output.trajectory_scale, torch.tensor([1.0, 0.9, 1.1]))


def test_a_divergence_below_zero_is_rounding():
    output = assign(VppoCredit(), -1e-7 * torch.ones(3, 5))
    assert torch.equal(output.weights, BATCH.response_mask.float())
    assert output.trajectory_scale.tolist() == [1, 1, 1]


def test_what_it_asks_for():
    scheme = VppoCredit(mask_ratio=0.25, seed=7)
    assert scheme.picture_mask == PictureMask(ratio=0.25, seed=7)
    assert scheme.requests == () and not scheme.has_auxiliary_loss
    assert (scheme.scope, scheme.normalised_over) == ("batch", "response")
    unscaled = VppoCredit(scale_low=1.0)
    assert unscaled.scope == "response" and assign(unscaled).trajectory_scale is None
    with pytest.raises(AssertionError, match="vppo needs the policy's view"):
        scheme.assign(BATCH, Evidence(torch.zeros(3, 5), torch.zeros(3, 5), {}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, r"^credit\.ratio must be in \(0, 1\], got 0\.0"),
        ({"mask_ratio": 1.1}, r"^credit\.mask_ratio must be in \(0, 1\], got 1\.1"),
        ({"scale_low": 1.1}, r"^credit\.scale_low must be between 0 and 1 \(off\), got 1\.1"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        VppoCredit(**options)
