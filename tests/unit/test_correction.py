"""The corrections for a sampler that is not the trainer; expected values worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf, log, nan

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from loss_batches import AGGREGATIONS, LOSSES, experience, loss_name, random_batch
from test_algorithms import composed, refusal

from atrl.advantage import GroupAdvantage
from atrl.config import check_config
from atrl.loss.correction import Mask, Truncate, ratio_metrics
from atrl.loss.objective import Objective

KINDS = {
    "token_truncate": partial(Truncate, unit="token"),
    "token_mask": partial(Mask, unit="token"),
    "sequence_truncate": partial(Truncate, unit="sequence"),
    "sequence_mask": partial(Mask, unit="sequence"),
}
RATIOS = torch.tensor([[0.25, 1.5, 3.0, 1.0], [0.5, 0.5, 9.0, 9.0], [2.0, 1.0, 1.0, 1.0]])
MASK = torch.tensor([[True, True, True, True], [True, True, False, False], [True, True, True, False]])
"""Of the responses' ratios the products are 1.125, 0.25 and 2."""

EXPECTED = {
    ("token_truncate", 0.0): [[0.25, 1.5, 2.0, 1.0], [0.5, 0.5, 0.0, 0.0], [2.0, 1.0, 1.0, 0.0]],
    ("token_truncate", 0.5): [[0.5, 1.5, 2.0, 1.0], [0.5, 0.5, 0.0, 0.0], [2.0, 1.0, 1.0, 0.0]],
    ("token_mask", 0.0): [[0.25, 1.5, 0.0, 1.0], [0.5, 0.5, 0.0, 0.0], [2.0, 1.0, 1.0, 0.0]],
    ("token_mask", 0.5): [[0.0, 1.5, 0.0, 1.0], [0.5, 0.5, 0.0, 0.0], [2.0, 1.0, 1.0, 0.0]],
    ("sequence_truncate", 0.0): [[1.125] * 4, [0.25, 0.25, 0.0, 0.0], [2.0, 2.0, 2.0, 0.0]],
    ("sequence_truncate", 0.5): [[1.125] * 4, [0.5, 0.5, 0.0, 0.0], [2.0, 2.0, 2.0, 0.0]],
    ("sequence_mask", 0.0): [[1.125] * 4, [0.25, 0.25, 0.0, 0.0], [2.0, 2.0, 2.0, 0.0]],
    ("sequence_mask", 0.5): [[1.125] * 4, [0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 0.0]],
}
LIMITED = {
    ("token_truncate", 0.0): [(0, 2)],
    ("token_truncate", 0.5): [(0, 0), (0, 2)],
    ("token_mask", 0.0): [(0, 2)],
    ("token_mask", 0.5): [(0, 0), (0, 2)],
    ("sequence_truncate", 0.0): [],
    ("sequence_truncate", 0.5): [(1, 0), (1, 1)],
    ("sequence_mask", 0.0): [],
    ("sequence_mask", 0.5): [(1, 0), (1, 1)],
}


@pytest.mark.parametrize(("name", "low"), EXPECTED)
def test_weights_by_hand(name: str, low: float) -> None:
    # 2 is within the bounds, and powers of two are exact in logarithms to the base 2 alone: a little room.
    found = KINDS[name](low=low, high=2.0 + 1e-6)(RATIOS.log(), MASK)
    torch.testing.assert_close(found.weights, torch.tensor(EXPECTED[name, low]), rtol=0, atol=3e-6)
    assert [tuple(pair) for pair in found.limited.nonzero().tolist()] == LIMITED[name, low]


@pytest.mark.parametrize("name", ["sequence_truncate", "sequence_mask"])
def test_a_response_far_above_the_bound(name: str) -> None:
    """Two ratios of 1.5 are 2.25 together: above 2, though neither token is. Too large for a float is above as well."""
    log_ratio = torch.tensor([[log(1.5), log(1.5)], [90.0, 90.0], [-90.0, -90.0]])
    found = KINDS[name]()(log_ratio, torch.ones(3, 2, dtype=torch.bool))
    limit = 2.0 if name == "sequence_truncate" else 0.0
    assert found.weights.tolist() == [[limit] * 2, [limit] * 2, [0.0] * 2]
    assert found.limited.tolist() == [[True] * 2, [True] * 2, [False] * 2]
    assert KINDS[name](low=0.5)(log_ratio, torch.ones(3, 2, dtype=torch.bool)).limited.all()  # 0 is below 0.5


@pytest.mark.parametrize("garbage", [nan, inf, -inf, 50.0])
@pytest.mark.parametrize("kind", KINDS.values())
def test_nothing_outside_the_mask_has_an_effect(kind, garbage: float) -> None:
    log_ratio = RATIOS.log()
    clean, dirty = (kind(low=0.3)(values, MASK) for values in (log_ratio, log_ratio.masked_fill(~MASK, garbage)))
    assert torch.equal(clean.weights, dirty.weights) and torch.equal(clean.limited, dirty.limited)
    assert (dirty.weights[~MASK] == 0).all() and not dirty.limited[~MASK].any()


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_perfect_sampler_changes_nothing(kind) -> None:
    found = kind(low=0.9, high=1.1)(torch.zeros(3, 4, requires_grad=True), MASK)
    assert torch.equal(found.weights, MASK.float()) and not found.limited.any() and not found.weights.requires_grad


def test_the_unit_is_named() -> None:
    with pytest.raises(ValueError, match=r"^algorithm\.correction\.unit must be token or sequence, got 'group'"):
        Mask(unit="group")


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"low": -0.1}, r"algorithm.correction.low must be in \[0, 1\), got -0.1"),
        ({"low": 1.0}, r"algorithm.correction.low must be in \[0, 1\), got 1.0"),
        ({"high": 1.0}, "algorithm.correction.high must be above 1, got 1.0"),
        ({"high": nan}, "algorithm.correction.high must be above 1, got nan"),
    ],
)
def test_bounds_hold_the_perfect_ratio(kind, bounds: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**bounds)


def objective(loss, aggregation=AGGREGATIONS[0], **options) -> Objective:
    return Objective(advantage=GroupAdvantage(), loss=loss, aggregation=aggregation, **options)


def total_and_gradient(target: Objective, batch, given):
    logprobs = batch.logprobs.clone().requires_grad_()
    total, sums = target(logprobs, batch.advantages, given, batch.totals)
    total.backward()
    return total.detach(), logprobs.grad, sums


@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=loss_name)
@pytest.mark.parametrize("loss", LOSSES, ids=loss_name)
@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("old", [True, False], ids=["old", "current"])
def test_every_objectives_loss_is_multiplied(kind, loss, aggregation, old: bool) -> None:
    """By old log-probs over the sampler's, or by the current ones, without their gradient; the KL is not."""
    batch = random_batch()
    sampler = batch.old - 0.4 * torch.sin(torch.arange(batch.mask.numel())).view(batch.mask.shape)
    given = replace(experience(batch, old=old), sampler_logprobs=sampler)
    correction = kind(low=0.8, high=1.2)
    numerator = batch.old if old else batch.logprobs
    weights = correction(numerator - sampler, batch.mask)
    assert 0 < weights.limited.sum() < batch.mask.sum()

    # The plain objective is linear in the advantages and in what multiplies them: token by token it has to match.
    logprobs = batch.logprobs.clone().requires_grad_()
    plain, _ = objective(loss, aggregation).per_token(logprobs, batch.advantages, given)
    expected = aggregation(plain * weights.weights, batch.mask, batch.totals)
    divergence = objective(loss, aggregation, kl_coefficient=0.3)(logprobs, batch.advantages * 0, given, batch.totals)[
        0
    ]
    (expected + divergence).backward()
    target = objective(loss, aggregation, kl_coefficient=0.3, correction=correction)
    total, gradient, sums = total_and_gradient(target, batch, given)
    torch.testing.assert_close(total, (expected + divergence).detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, logprobs.grad, rtol=1e-12, atol=1e-15)
    assert sums["correction_share"] == weights.limited.sum()
    assert float(sums["correction_weight"]) == pytest.approx(float(weights.weights.sum()))


def test_token_credit_keeps_its_weights() -> None:
    """The correction multiplies the loss and leaves the advantages, weighed by credit, as they are."""
    batch = random_batch().with_token_advantages()
    given = replace(experience(batch, old=False), sampler_logprobs=batch.logprobs - log(1.5))
    without = total_and_gradient(objective(LOSSES[0]), batch, given)
    corrected = total_and_gradient(objective(LOSSES[0], correction=Truncate(unit="token")), batch, given)
    torch.testing.assert_close(corrected[0], 1.5 * without[0])
    torch.testing.assert_close(corrected[1], 1.5 * without[1])


def test_raw_ratios_by_hand() -> None:
    """Ratios 1/2, 1, 1, 8, and responses of 1/2 and 8: before any bound."""
    metrics = ratio_metrics(np.log([0.5, 1.0, 1.0, 8.0]), np.log([0.5, 8.0]))
    assert metrics == pytest.approx(
        {
            "rollout/ratio_mean": 10.5 / 4,
            "rollout/ratio_min": 0.5,
            "rollout/ratio_max": 8.0,
            "rollout/ratio_p01": 0.5**0.97,  # 0.03 of the way from the first to the second of four, in logarithms
            "rollout/ratio_p50": 1.0,
            "rollout/ratio_p99": 8.0**0.97,
            "rollout/sequence_ratio_mean": 4.25,
            "rollout/sequence_ratio_min": 0.5,
            "rollout/sequence_ratio_max": 8.0,
        }
    )
    assert ratio_metrics(np.array([1000.0]), np.array([1000.0]))["rollout/ratio_max"] == inf


@pytest.mark.parametrize("algorithm", ["grpo", "grpo_paper", "dr_grpo", "dapo", "gspo_token", "sapo", "cispo"])
@pytest.mark.parametrize("name", KINDS)
def test_every_algorithm_takes_every_kind(algorithm: str, name: str) -> None:
    config = composed(f"algorithm={algorithm}", f"algorithm/correction={name}", "algorithm.correction.high=3")
    check_config(config)
    assert instantiate(config.algorithm).correction == KINDS[name](high=3.0)


def test_none_is_the_default_and_can_be_asked_for() -> None:
    for overrides in ([], ["algorithm/correction=none"]):
        config = composed(*overrides)
        check_config(config)
        assert instantiate(config.algorithm).correction is None


def test_a_loss_with_one_ratio_a_response_takes_one_weight_a_response() -> None:
    for name in ("token_truncate", "token_mask"):
        assert refusal("algorithm=gspo", "credit=none", f"algorithm/correction={name}") == (
            f"algorithm.correction={KINDS[name].func.__name__} can't be used with SequenceClippedLoss, whose ratio and "
            "clip are per response: use algorithm/correction=sequence_mask or sequence_truncate, or "
            "algorithm=gspo_token"
        )
    for name in ("sequence_truncate", "sequence_mask"):
        check_config(composed("algorithm=gspo", "credit=none", f"algorithm/correction={name}"))
