"""Losses per token and their aggregation, by hand."""

from __future__ import annotations

from itertools import pairwise
from math import inf, log, nan

import pytest
import torch

from atrl.advantage import GroupAdvantage
from atrl.loss.aggregation import BatchTotals, ConstantLength, SequenceMean, TokenMean
from atrl.loss.clipped import ClippedLoss
from atrl.loss.kl import k3_divergence
from atrl.loss.objective import Objective
from atrl.types import Experience

AGGREGATIONS = [TokenMean(), SequenceMean(), ConstantLength()]


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient", "clipped"),
    [
        (1.0, 1.5, -1.28, 0.0, True),  # min(1.5, 1.28): stopped by clip_high
        (1.0, 0.5, -0.5, -0.5, False),  # min(0.5, 0.8): the bound never helps a good token back up
        (-1.0, 1.5, 1.5, 1.5, False),  # min(-1.5, -1.28): nor a bad one back down
        (-1.0, 0.5, 0.8, 0.0, True),  # min(-0.5, -0.8): stopped by clip_low
        (1.0, 1.25, -1.25, -1.25, False),  # above 1.2 but under clip-higher's 1.28
        (-1.0, 0.79, 0.8, 0.0, True),  # the lower bound is 0.8 and not 0.72
        (2.0, 1.1, -2.2, -2.2, False),
        (-2.0, 0.9, 1.8, 1.8, False),
        (0.0, 1.5, 0.0, 0.0, False),
    ],
)
def test_clip(advantage, ratio, loss, gradient, clipped):
    """The gradient by the log-prob of -r·A is -r·A itself, because dr/dlogprob = r."""
    old = torch.tensor([[-1.3]])
    logprobs = (old + log(ratio)).requires_grad_()
    result = ClippedLoss(clip_low=0.2, clip_high=0.28)(
        logprobs, old, torch.tensor([[advantage]]), torch.ones(1, 1).bool()
    )
    result.loss.sum().backward()
    assert result.loss.item() == pytest.approx(loss, abs=1e-6)
    assert logprobs.grad.item() == pytest.approx(gradient, abs=1e-6)
    assert result.clipped.item() is clipped


@pytest.mark.parametrize("options", [{"clip_low": 0.0}, {"clip_low": 1.0}, {"clip_high": 0.0}, {"clip_high": -1.0}])
def test_clip_ranges(options):
    with pytest.raises(ValueError, match=rf"algorithm\.loss\.{next(iter(options))} must be .* got"):
        ClippedLoss(**options)


def test_k3_by_hand():
    """d = 0: 0. d = ln 2: 2 - ln 2 - 1. d = -ln 2: 1/2 + ln 2 - 1. The gradient by the log-prob is 1 - exp(d)."""
    logprobs = torch.tensor([[-1.0, -1.0, -1.0]], requires_grad=True)
    divergence = k3_divergence(logprobs, torch.tensor([[-1.0, -1.0 + log(2), -1.0 - log(2)]]))
    torch.testing.assert_close(divergence, torch.tensor([[0.0, 1 - log(2), log(2) - 0.5]]))
    divergence.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[0.0, -1.0, 0.5]]))


def test_k3_is_never_negative_and_estimates_the_divergence():
    """E_π[k3] = Σ π·(q/π - ln(q/π) - 1) = KL(π ‖ q), since Σ q = Σ π = 1."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(1, 50, generator=generator).log_softmax(-1) for _ in range(2))
    divergence = k3_divergence(policy, reference)
    assert (divergence >= 0).all()
    expected = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * divergence).sum(), expected)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        (TokenMean(), 7 / 3),  # (1 + 2 + 4) / 3 tokens
        (SequenceMean(), 2.75),  # ((1 + 2)/2 + 4) / 2 rollouts
        (ConstantLength(), 0.7),  # (1 + 2 + 4) / (2 rollouts · 5 tokens)
    ],
)
def test_aggregation_by_hand(aggregation, expected):
    loss = torch.tensor([[1.0, 2.0, 99.0], [4.0, 99.0, 99.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert aggregation(loss, mask, BatchTotals(3, 2, 5)).item() == pytest.approx(expected)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_add_up_to_the_batch(aggregation):
    generator = torch.Generator().manual_seed(1)
    loss = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    mask = torch.arange(9)[None] < torch.tensor([9, 1, 4, 0, 7, 2])[:, None]
    totals = BatchTotals(tokens=23, sequences=5, max_response_tokens=9)
    whole = aggregation(loss, mask, totals)
    for cuts in range(1 << 5):  # every way to cut six rows into consecutive pieces
        edges = [0, *(i for i in range(1, 6) if cuts >> (i - 1) & 1), 6]
        pieces = [aggregation(loss[a:b], mask[a:b], totals) for a, b in pairwise(edges)]
        torch.testing.assert_close(sum(pieces), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("garbage", [nan, inf, -inf])
def test_aggregation_ignores_what_is_masked(aggregation, garbage):
    mask = torch.tensor([[True, False], [False, False]])
    loss = torch.tensor([[2.0, garbage], [garbage, garbage]], requires_grad=True)
    total = aggregation(loss, mask, BatchTotals(1, 1, 1))
    total.backward()
    assert total.item() == 2.0
    assert loss.grad.tolist() == [[1.0, 0.0], [0.0, 0.0]]


MASK = torch.tensor([[True, True, False], [True, False, False]])
TOTALS = BatchTotals(tokens=3, sequences=2, max_response_tokens=3)


def experience(old: torch.Tensor | None = None, reference: torch.Tensor | None = None) -> Experience:
    blank = torch.zeros(2, 4, dtype=torch.long)
    return Experience(blank, blank, MASK, [{}, {}], torch.zeros(2, 3), old_logprobs=old, reference_logprobs=reference)


def objective(**options) -> Objective:
    return Objective(advantage=GroupAdvantage(), loss=ClippedLoss(), aggregation=TokenMean(), **options)


def test_without_old_logprobs_the_gradient_is_minus_the_advantage():
    """Ratio 1 wherever the log-prob stands: loss -Σ A/3 = -(1 - 2 + 4)/3, gradient -A/3 on each trained token."""
    logprobs = torch.tensor([[-0.1, -7.0, -1.0], [-2.0, -1.0, -1.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, -2.0, 50.0], [4.0, 50.0, 50.0]])
    loss, sums = objective()(logprobs, advantages, experience(), TOTALS)
    loss.backward()
    assert loss.item() == pytest.approx(-1.0)
    torch.testing.assert_close(logprobs.grad * 3, torch.tensor([[-1.0, 2.0, 0.0], [-4.0, 0.0, 0.0]]))
    assert sums["clip_share"].item() == 0 and "kl" not in sums


def test_kl_is_added_with_its_coefficient():
    """No advantage, so 10 · k3 alone: 1 - ln 2 on the first token of each row, 0 on the third: 10·2·(1 - ln 2)/3.

    Its gradient by the log-prob is 10·(1 - exp(d))/3 with d = ln 2 and 0; what is counted for the metrics has none.
    """
    logprobs = torch.full((2, 3), -1.0, requires_grad=True)
    reference = torch.tensor([[-1.0 + log(2), -1.0, 5.0], [-1.0 + log(2), 5.0, 5.0]])
    loss, sums = objective(kl_coefficient=10.0)(logprobs, torch.zeros(2, 3), experience(reference=reference), TOTALS)
    assert loss.item() == pytest.approx(20 * (1 - log(2)) / 3)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-10 / 3, 0.0, 0.0], [-10 / 3, 0.0, 0.0]]))
    assert sums["kl"].item() == pytest.approx(2 * (1 - log(2)))
    assert not any(value.requires_grad for value in sums.values())


def test_clipped_tokens_are_counted_where_they_are_trained():
    """Every ratio is e, every advantage 1: all three trained tokens are clipped, and so would be the masked ones."""
    _, sums = objective()(torch.zeros(2, 3), torch.ones(2, 3), experience(old=torch.full((2, 3), -1.0)), TOTALS)
    assert sums["clip_share"].item() == 3


@pytest.mark.parametrize("garbage", [nan, inf, -inf, 1e4])
@pytest.mark.parametrize("with_old", [True, False])
def test_objective_ignores_what_is_masked(garbage, with_old):
    """Value and gradient are those of a batch that holds zeros there, even where exp() of the garbage overflows."""
    generator = torch.Generator().manual_seed(2)
    clean = [torch.randn(2, 3, generator=generator) * MASK for _ in range(4)]
    results = []
    for tensors in (clean, [torch.where(MASK, tensor, garbage) for tensor in clean]):
        logprobs, old, reference, advantages = tensors
        logprobs = logprobs.clone().requires_grad_()
        batch = experience(old if with_old else None, reference)
        loss, sums = objective(kl_coefficient=0.1)(logprobs, advantages, batch, TOTALS)
        loss.backward()
        results.append((loss.item(), logprobs.grad.tolist(), {name: value.item() for name, value in sums.items()}))
    assert results[0] == results[1]


def test_objective_options_are_checked():
    with pytest.raises(ValueError, match=r"algorithm\.kl_coefficient must be 0 \(off\) or more, got -1"):
        objective(kl_coefficient=-1)
    with pytest.raises(ValueError, match=r"algorithm\.updates_per_batch must be at least 1, got 0"):
        objective(updates_per_batch=0)
    with pytest.raises(ValueError, match=r"algorithm\.credit_on must be one of all, positive, negative, got 'wrong'"):
        objective(credit_on="wrong")
    with pytest.raises(AssertionError, match="reference log-probs"):
        objective(kl_coefficient=1.0)(torch.zeros(2, 3), torch.zeros(2, 3), experience(), TOTALS)
