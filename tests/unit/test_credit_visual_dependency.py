"""Soft credit by what a masked picture changes."""

from __future__ import annotations

import pytest
import torch
from credit_evidence import batch_of

from atrl.credit.base import PictureMask
from atrl.credit.dependency import visual_dependency
from atrl.credit.visual_dependency import VisualDependencyCredit, fewest_tokens
from atrl.types import Evidence, MaskedView

DIVERGENCE = torch.tensor([[0.1, 0.5, 0.0, 0.3, 0.1], [0.4, 0.2, 0.0, 9.0, 9.0], [0.5, 0.5, 0.5, 0.4, 0.1]])
BATCH = batch_of([(5, 4), (3, 4), (5, 4)])


def evidence(divergence: torch.Tensor = DIVERGENCE) -> Evidence:
    zeros = torch.zeros(divergence.shape)
    return Evidence(zeros, zeros, {}, MaskedView(zeros, divergence))


def test_weights_by_hand() -> None:
    """Anchors: 2 of five, 1 of three (round(1.2)), the first 2 of a tie. Of five tokens two at 3 and three at 1 sum to
    9, of three one at 3 and two at 1 to 5; padding, whatever stands there, weighs nothing."""
    output = VisualDependencyCredit(anchor_ratio=0.4).assign(BATCH, evidence())
    expected = torch.tensor([[1, 3, 1, 3, 1], [3, 1, 1, 0, 0], [3, 3, 1, 1, 1]]) * torch.tensor(
        [[5 / 9], [3 / 5], [5 / 9]]
    )
    torch.testing.assert_close(output.weights, expected)
    assert output.anchors.tolist() == (expected > 1).tolist()
    assert output.trajectory_scale is None
    torch.testing.assert_close(output.density, DIVERGENCE * BATCH.response_mask)


def test_the_hard_form_trains_anchors_alone() -> None:
    output = VisualDependencyCredit(anchor_ratio=0.4, rest_weight=0.0).assign(BATCH, evidence())
    torch.testing.assert_close(output.weights[0], torch.tensor([0, 2.5, 0, 2.5, 0]))


def test_as_many_as_hold_what_it_depends_on() -> None:
    """Of 1 nat in all: 0.5 and 0.3 hold 0.8, with the first 0.1 it is 0.9, with the second all. Of 0.6: 0.4 hold two
    thirds. Of 2.0: of the tie the first two hold a half."""
    for mass, chosen in {
        0.5: [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]],
        0.8: [[0, 1, 0, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]],
        0.85: [[1, 1, 0, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]],
        1.0: [[1, 1, 0, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]],
    }.items():
        assert fewest_tokens(DIVERGENCE, BATCH.response_mask, mass=mass).int().tolist() == chosen, mass
    output = VisualDependencyCredit(anchor_mass=0.8).assign(BATCH, evidence())
    assert output.anchors.int().tolist() == [[0, 1, 0, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    torch.testing.assert_close(output.weights[0], torch.tensor([1, 3, 1, 3, 1]) * 5 / 9)


def test_one_token_that_says_it_all_is_the_only_anchor() -> None:
    """However large its dependency is; a response of one token, or of equal ones, has no anchor."""
    scores = torch.tensor([[torch.inf, 1.0, 2.0], [1.0, 9.0, 9.0], [0.3, 0.3, 0.3], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True] * 3, [True, False, False], [True] * 3, [True] * 3])
    chosen = fewest_tokens(scores, mask, mass=0.95)
    assert chosen.tolist() == [[True, False, False], *[[False] * 3] * 3]


def test_padding_has_no_say_in_how_many() -> None:
    """To the bit: a sum of numbers would depend on how many zeros are added to it."""
    scores = torch.rand(64, 37, generator=torch.Generator().manual_seed(0)) ** 8
    mask = torch.ones(scores.shape, dtype=torch.bool)
    wide, wide_mask = (torch.nn.functional.pad(one, (0, 91), value=value) for one, value in ((scores, 7.0), (mask, 0)))
    for mass in (0.5, 0.9, 0.99):
        narrow = fewest_tokens(scores, mask, mass=mass)
        assert torch.equal(fewest_tokens(wide, wide_mask, mass=mass)[:, :37], narrow) and narrow.any(dim=1).all()
        held = (scores * narrow).sum(dim=1) / scores.sum(dim=1)
        least = torch.where(narrow, scores, torch.inf).amin(dim=1) / scores.sum(dim=1)
        assert (held > mass - 1e-6).all() and (held - least < mass + 1e-6).all()


def test_without_a_picture_nothing_depends_on_it() -> None:
    """Two passes over the same input differ by rounding, either way; a millionth of a nat is the bound."""
    divergence = DIVERGENCE.clone()
    divergence[1] = torch.tensor([2e-8, -3e-8, 9e-7, 0.0, 0.0])
    divergence[2] = torch.tensor([2e-6, -3e-8, 9e-7, 0.0, 0.0])
    output = VisualDependencyCredit(anchor_ratio=0.15).assign(BATCH, evidence(divergence))
    assert output.weights[1].tolist() == [1, 1, 1, 0, 0] and not output.anchors[1].any() and not output.density[1].any()
    assert output.anchors[2].tolist() == [True, False, False, False, False]


def test_what_it_asks_for() -> None:
    scheme = VisualDependencyCredit(mask_ratio=0.25, seed=7)
    assert scheme.picture_mask == PictureMask(ratio=0.25, seed=7)
    assert VisualDependencyCredit(mask="shuffled").picture_mask == PictureMask(ratio=0.5, by="shuffled")
    assert scheme.requests == () and not scheme.has_auxiliary_loss and not scheme.needs_masked_gradient
    assert (scheme.scope, scheme.normalised_over) == ("response", "response")  # so no pass over the whole batch first
    blind = Evidence(torch.zeros(3, 5), torch.zeros(3, 5), {})
    with pytest.raises(AssertionError, match="visual_dependency needs the policy's view of the masked picture"):
        scheme.assign(BATCH, blind)
    with pytest.raises(AssertionError, match="credit scheme mine needs"):
        visual_dependency(BATCH, blind, "mine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor_ratio": 0.0}, r"^credit\.anchor_ratio must be in \(0, 1\], got 0\.0"),
        ({"anchor_mass": 0.0}, r"^credit\.anchor_mass must be in \(0, 1\], got 0\.0: try 0\.95"),
        ({"mask_ratio": 1.1}, r"^credit\.mask_ratio must be in \(0, 1\], got 1\.1: try 0\.5"),
        ({"rest_weight": 4.0}, r"^credit\.rest_weight must be between 0 and credit\.anchor_weight > 0, got 4\.0 and 3"),
    ],
)
def test_ranges(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisualDependencyCredit(**options)
