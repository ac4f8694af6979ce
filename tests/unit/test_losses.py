"""What every policy loss must hold to, whatever its formula."""

from __future__ import annotations

from itertools import pairwise
from math import inf, nan

import pytest
import torch
from loss_batches import AGGREGATIONS, LOSSES, experience, loss_name, random_batch

from atrl.advantage import GroupAdvantage
from atrl.loss.aggregation import ConstantLength, SequenceMean, TokenMean
from atrl.loss.objective import Objective

every_loss = pytest.mark.parametrize("loss", LOSSES, ids=loss_name)
every_aggregation = pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=loss_name)


def batch_for(loss, **options):
    """With advantages of each token's own where the loss takes them."""
    batch = random_batch(**options)
    return batch.with_token_advantages() if loss.accepts_token_credit else batch


def masked_sum(loss, batch):
    """(Σ of the masked loss, its gradient by the log-probs, the clipped trained tokens), the loss called directly."""
    logprobs = batch.logprobs.clone().requires_grad_()
    token = loss(logprobs, batch.old, batch.advantages, batch.mask)
    assert token.loss.shape == token.clipped.shape == batch.mask.shape
    assert token.clipped.dtype == torch.bool and not token.clipped.requires_grad
    assert (token.loss[~batch.mask] == 0).all()
    total = torch.where(batch.mask, token.loss, 0.0).sum()
    total.backward()
    return total.detach(), logprobs.grad, token.clipped & batch.mask


def weights_of(aggregation, batch):
    """What a token's loss is multiplied with in the total, written out from the papers' equations."""
    lengths, sequences = batch.mask.sum(dim=1, keepdim=True).double(), batch.mask.any(dim=1).sum().double()
    if isinstance(aggregation, TokenMean):
        weight = 1 / lengths.sum()
    elif isinstance(aggregation, SequenceMean):
        weight = 1 / (lengths * sequences)
    else:
        assert isinstance(aggregation, ConstantLength)
        weight = 1 / (sequences * batch.mask.shape[1])
    return weight * batch.mask


@every_aggregation
@every_loss
def test_with_one_update_a_batch_every_loss_has_the_policy_gradient(loss, aggregation):
    """At ratio 1 nothing is clipped and each gradient is -A, so that what remains is the aggregation's weight.

    GSPO spreads its response's gradient evenly, which adds up to the same: Σ_t' -A·(1/T)·weight = -A·weight.
    """
    batch = batch_for(loss)
    logprobs = batch.logprobs.clone().requires_grad_()
    objective = Objective(advantage=GroupAdvantage(), loss=loss, aggregation=aggregation)
    total, sums = objective(logprobs, batch.advantages, experience(batch, old=False), batch.totals)
    total.backward()
    torch.testing.assert_close(logprobs.grad, -batch.advantages * weights_of(aggregation, batch), rtol=1e-12, atol=0)
    assert sums["clip_share"] == 0


@every_loss
def test_the_batch_of_these_tests_clips_some_tokens_and_not_others(loss):
    batch = batch_for(loss)
    _, _, clipped = masked_sum(loss, batch)
    share = clipped.sum() / batch.mask.sum()
    assert share == 0 if loss_name(loss) == "SoftAdaptiveLoss" else 0.05 < share < 0.95


@pytest.mark.parametrize("garbage", [nan, inf, -inf, 1e4])
@every_loss
def test_nothing_outside_the_mask_has_an_effect(loss, garbage):
    batch = batch_for(loss, lengths=(9, 1, 0, 4))
    clean, dirty = masked_sum(loss, batch), masked_sum(loss, batch.outside(garbage))
    assert clean[0] == dirty[0] and torch.isfinite(clean[0])
    assert torch.equal(clean[1], dirty[1]) and torch.equal(clean[2], dirty[2])
    assert (dirty[1][~batch.mask] == 0).all() and (dirty[1][batch.mask] != 0).any()


@every_loss
def test_padding_changes_nothing(loss):
    batch = batch_for(loss)
    total, gradient, clipped = masked_sum(loss, batch)
    padded_total, padded_gradient, padded_clipped = masked_sum(loss, batch.padded(5))
    torch.testing.assert_close(padded_total, total, rtol=1e-12, atol=0)
    torch.testing.assert_close(padded_gradient[:, :9], gradient, rtol=1e-12, atol=1e-15)
    assert torch.equal(padded_clipped[:, :9], clipped) and not padded_gradient[:, 9:].any()


@every_aggregation
@every_loss
def test_micro_batches_add_up_to_the_batch(loss, aggregation):
    batch = batch_for(loss, lengths=(9, 1, 4, 0, 7, 2))
    objective = Objective(advantage=GroupAdvantage(), loss=loss, aggregation=aggregation, kl_coefficient=0.1)

    def total_and_gradient(edges):
        logprobs = batch.logprobs.clone().requires_grad_()
        losses = []
        for rows in (slice(*pair) for pair in pairwise(edges)):
            piece = batch.rows(rows)
            losses.append(objective(logprobs[rows], piece.advantages, experience(piece), batch.totals)[0])
            losses[-1].backward()
        return sum(losses).detach(), logprobs.grad

    whole = total_and_gradient([0, 6])
    assert whole[1].abs().sum() > 0
    for cuts in range(1, 1 << 5):  # every other way to cut six rows into consecutive pieces
        pieces = total_and_gradient([0, *(i for i in range(1, 6) if cuts >> (i - 1) & 1), 6])
        torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-15)


def test_only_plain_gspo_refuses_token_credit():
    assert [loss_name(loss) for loss in LOSSES if not loss.accepts_token_credit] == ["SequenceClippedLoss"]
