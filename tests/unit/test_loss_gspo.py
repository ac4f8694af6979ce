"""GSPO and GSPO-token, by hand and against a loop over the paper's equations."""

from __future__ import annotations

from math import exp, log, prod

import pytest
import torch
from loss_batches import random_batch

from atrl.loss.aggregation import SequenceMean
from atrl.loss.clipped import ClippedLoss
from atrl.loss.gspo import GspoTokenLoss, SequenceClippedLoss

RANGE = {"clip_low": 0.2, "clip_high": 0.3}


def two_tokens(loss, ratios, advantages):
    """(loss per token, Σ's gradient by each log-prob, clipped) of a response of two tokens, and one of padding."""
    old = torch.tensor([[-1.3, -0.4, 0.0]], dtype=torch.float64)
    logprobs = (old + torch.tensor([[*map(log, ratios), 3.0]], dtype=torch.float64)).requires_grad_()
    mask = torch.tensor([[True, True, False]])
    token = loss(logprobs, old, torch.tensor([[*advantages, 7.0]], dtype=torch.float64), mask)
    token.loss[mask].sum().backward()
    return token.loss[mask].tolist(), logprobs.grad[mask].tolist(), token.clipped[mask].tolist()


@pytest.mark.parametrize(
    ("advantage", "ratios", "loss", "gradient", "clipped"),
    [
        (1.0, (2.0, 0.5), -1.0, -1.0, False),  # s = √(2 · ½) = 1: token ratios far outside, their mean inside
        (1.0, (1.21, 1.0), -1.1, -1.1, False),  # s = √1.21
        (-1.0, (1.21, 1.0), 1.1, 1.1, False),
        (1.0, (1.44, 1.44), -1.3, 0.0, True),  # min(1.44, 1.3): stopped by clip_high
        (1.0, (4.0, 0.49), -1.3, 0.0, True),  # s = 1.4, and so is the token whose own ratio fell
        (-1.0, (1.44, 1.44), 1.44, 1.44, False),  # min(-1.44, -1.3): a bad response is always pushed down
        (1.0, (0.5, 0.5), -0.5, -0.5, False),  # min(0.5, 0.8): a good one always back up
        (-1.0, (0.5, 0.5), 0.8, 0.0, True),  # min(-0.5, -0.8): stopped by clip_low
        (-2.0, (0.81, 1.0), 1.8, 1.8, False),  # s = 0.9
        (0.0, (3.0, 3.0), 0.0, 0.0, False),
    ],
)
@pytest.mark.parametrize("kind", [SequenceClippedLoss, GspoTokenLoss])
def test_by_hand(kind, advantage, ratios, loss, gradient, clipped):
    """d s / d logprob = s/2 for either token, and either token's loss holds s: -s·A/2 twice. GSPO-token: -s·A once."""
    values, gradients, flags = two_tokens(kind(**RANGE), ratios, (advantage, advantage))
    assert values == pytest.approx([loss] * 2, abs=1e-12)
    assert gradients == pytest.approx([gradient] * 2, abs=1e-12)
    assert flags == [clipped] * 2


@pytest.mark.parametrize(
    ("ratios", "losses", "gradients", "clipped"),
    [
        ((1.21, 1.0), (-3.3, 1.1), (-3.3, 1.1), [False, False]),  # s = 1.1 times each token's own advantage
        ((1.44, 1.44), (-3.9, 1.44), (0.0, 1.44), [True, False]),  # above the range only the good token stops,
        ((0.5, 0.5), (-1.5, 0.8), (-1.5, 0.0), [False, True]),  # below it only the bad one
    ],
)
def test_gspo_token_with_advantages_of_their_own(ratios, losses, gradients, clipped):
    values, slopes, flags = two_tokens(GspoTokenLoss(**RANGE), ratios, (3.0, -1.0))
    assert values == pytest.approx(losses, abs=1e-12)
    assert slopes == pytest.approx(gradients, abs=1e-12)
    assert flags == clipped


def test_gspo_has_no_place_for_advantages_of_their_own():
    with pytest.raises(AssertionError, match="GspoTokenLoss takes them"):
        two_tokens(SequenceClippedLoss(), (1.0, 1.0), (3.0, 2.9))


@pytest.mark.parametrize("kind", [SequenceClippedLoss, GspoTokenLoss])
def test_aggregated_it_is_the_papers_objective(kind):
    """Equations 5, 7 and 10 as loops: -1/G Σ min(s A, clip(s) A), s = (Π ratios)^(1/T); gradient -s·A/(G·T) or 0."""
    batch = random_batch()
    low, high = 0.03, 0.04
    logprobs = batch.logprobs.clone().requires_grad_()
    token = kind(clip_low=low, clip_high=high)(logprobs, batch.old, batch.advantages, batch.mask)
    total = SequenceMean()(token.loss, batch.mask, batch.totals)
    total.backward()
    expected, clipped = 0.0, []
    for row, length in enumerate(batch.mask.sum(dim=1).tolist()):
        ratios = [exp(batch.logprobs[row, t] - batch.old[row, t]) for t in range(length)]
        s, advantage = prod(ratios) ** (1 / length), batch.advantages[row, 0].item()
        bounded = min(max(s, 1 - low), 1 + high)
        expected -= min(s * advantage, bounded * advantage) / 6
        clipped.append(bounded * advantage < s * advantage)
        slope = 0.0 if clipped[-1] else -s * advantage / (6 * length)
        assert logprobs.grad[row].tolist() == pytest.approx([slope] * length + [0.0] * (9 - length), abs=1e-12)
    assert total.item() == pytest.approx(expected, abs=1e-12)
    assert any(clipped) and not all(clipped)
    assert token.clipped[:, 0].tolist() == clipped


def test_a_response_of_one_token_is_a_clipped_token():
    """Then s is the token's ratio: PPO's clip, in value and gradient."""
    batch = random_batch(lengths=(1,) * 6)
    results = []
    for kind in (ClippedLoss, SequenceClippedLoss, GspoTokenLoss):
        logprobs = batch.logprobs.clone().requires_grad_()
        loss = kind(clip_low=0.1, clip_high=0.12)(logprobs, batch.old, batch.advantages, batch.mask).loss
        loss[batch.mask].sum().backward()
        results.append((loss[batch.mask].detach(), logprobs.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(results[2], results[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [SequenceClippedLoss, GspoTokenLoss])
@pytest.mark.parametrize("options", [{"clip_low": 0.0}, {"clip_low": 1.0}, {"clip_high": 0.0}])
def test_ranges(kind, options):
    with pytest.raises(
        ValueError, match=rf"algorithm\.loss\.{next(iter(options))} must be .*, got .*: 0\.000[34] is usual"
    ):
        kind(**options)
