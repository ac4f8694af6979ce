"""Log-probabilities and entropies of small distributions that can be written down."""

from __future__ import annotations

from math import inf, log

import pytest
import torch

from atrl.logprobs import process_logits, token_entropy
from atrl.vocabulary import TokenDistributions, token_scores


def both_logprobs(logits: list[float], **options) -> list[float]:
    """log p of the tokens 0 and 1."""
    return logprobs_of(torch.tensor([logits, logits]), [0, 1], **options).tolist()


def logprobs_of(logits: torch.Tensor, ids: list[int], **options) -> torch.Tensor:
    return token_scores(logits, None, torch.tensor(ids), TokenDistributions(**options))[0]


@pytest.mark.parametrize(
    ("temperature", "odds"),
    [(1.0, 3), (0.5, 9), (2.0, 3**0.5)],  # exp(ln 3 / T) = 3^(1/T)
)
def test_temperature_divides_the_logits(temperature, odds):
    expected = [log(1 / (1 + odds)), log(odds / (1 + odds))]
    assert both_logprobs([0.0, log(3)], temperature=temperature) == pytest.approx(expected, abs=1e-6)


def test_a_banned_token_has_no_probability_and_takes_none():
    """Without the third token 0 and ln 3 are 1/4 and 3/4, however large its logit."""
    assert both_logprobs([0.0, log(3), 50.0], temperature=1.0, banned_ids=(2,)) == pytest.approx(
        [log(1 / 4), log(3 / 4)]
    )
    assert both_logprobs([0.0, log(3), 50.0], temperature=1.0, banned_ids=(0, 2)) == [-inf, 0.0]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gradient_is_the_one_hot_less_the_probabilities_over_the_temperature(temperature):
    """∇ log p(1) = (e_1 - p) / T; with logits T·(0, ln 3) p is (1/4, 3/4), and a banned token's entry is 0."""
    logits = torch.tensor([[0.0, temperature * log(3), 9.0]], requires_grad=True)
    logprobs_of(logits, [1], temperature=temperature, banned_ids=(2,)).sum().backward()
    torch.testing.assert_close(logits.grad[0], torch.tensor([-0.25, 0.25, 0.0]) / temperature)


def test_gradient_stays_finite_where_a_banned_token_is_masked_out():
    """Its log-prob of -inf must leave no NaN behind."""
    logits = torch.zeros(2, 3, requires_grad=True)
    logprobs = logprobs_of(logits, [1, 2], temperature=1.0, banned_ids=(2,))
    assert logprobs[1] == -inf
    torch.where(torch.tensor([True, False]), logprobs, 0.0).sum().backward()
    assert logits.grad.tolist() == [[-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("logits", "banned", "expected"),
    [
        ([7.0, 7.0, 7.0, 7.0], (), log(4)),
        ([7.0, 7.0, 7.0, 7.0], (0, 3), log(2)),
        ([0.0, log(3), 1.0], (2,), 0.5623351),  # -(0.25·ln 0.25 + 0.75·ln 0.75) = 0.3465736 + 0.2157615
        ([0.0, 5.0, 1.0], (0, 2), 0.0),
    ],
)
def test_entropy(logits, banned, expected):
    rows = torch.tensor([logits])
    log_p = process_logits(rows, temperature=1.0, banned_ids=banned).log_softmax(-1)
    entropy = token_entropy(log_p.clone(), log_p.exp())
    assert entropy.item() == pytest.approx(expected, abs=1e-6)
    distributions = TokenDistributions(temperature=1.0, banned_ids=banned)
    assert token_scores(rows, None, torch.tensor([1]), distributions)[1].item() == pytest.approx(expected, abs=1e-6)


def test_half_precision_logits_are_computed_in_float32_and_left_alone():
    logits = torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)
    assert process_logits(logits, temperature=0.7, banned_ids=(1,)).dtype == torch.float32
    exact = torch.tensor([1.0, 2.0, 3.0])
    process_logits(exact, temperature=1.0, banned_ids=(1,))
    assert logits.tolist() == exact.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_greedy_has_no_logprobs(temperature):
    with pytest.raises(ValueError, match=rf"rollout\.temperature must be positive .* got {temperature}"):
        process_logits(torch.zeros(3), temperature=temperature)
