"""What a step is summed up as."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from atrl.metrics import left_out_tokens, mean_of, reward_metrics, rollout_metrics, sampler_gap
from atrl.types import Reward, Status
from tests.unit.ranks import run_ranks


def group(*lengths: int):
    return SimpleNamespace(rollouts=[SimpleNamespace(token_ids=[0] * length) for length in lengths])


def test_tokens_that_dynamic_sampling_left_out_were_generated_too():
    """4 tokens in the batch and 6 beside it, in two seconds; lengths are those of the batch."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    experience = SimpleNamespace(response_mask=mask, sampler_logprobs=torch.zeros(2, 3))
    step = SimpleNamespace(
        groups=[group(1, 3)], discarded=[(group(2, 4), [])], experience=experience, logprobs=torch.full((2, 3), 0.5)
    )
    metrics = rollout_metrics(step, 2.0)
    assert metrics["rollout/tokens_per_second"] == 5.0 and metrics["rollout/response_length"] == 2.0
    assert metrics["rollout/logprob_gap_mean"] == metrics["rollout/logprob_gap_max"] == 0.5


def test_rewards_are_summed_up_by_hand():
    """Two groups of two, the second of equal totals. Shares are of the four rollouts; of groups, of the two."""
    rewards = [
        [
            Reward(1.0, {"exact": 1.0, "format": 0.0}, Status.RIGHT),
            Reward(2.0, {"exact": 1.0, "format": 1.0}, Status.RIGHT),
        ],
        [
            Reward(0.0, {"exact": 0.0, "format": 0.0}, Status.WRONG),
            Reward(0.0, {"exact": 1.0, "format": 0.5}, Status.TRUNCATED),
        ],
    ]
    assert reward_metrics(rewards) == {
        "reward/mean": 0.75,
        "reward/exact": 0.75,
        "reward/format": 0.375,
        "reward/right": 0.5,
        "reward/wrong": 0.25,
        "reward/unparseable": 0.0,
        "reward/truncated": 0.25,
        "reward/flat_groups": 0.5,
    }


def test_nothing_has_no_mean():
    assert mean_of([1.0, 4.0]) == 2.5 and mean_of([]) is None


def left_out_of_rank() -> int:
    """The first rank left out responses of 2 and 4 tokens, the second nothing."""
    discarded = [(group(2, 4), [])] if torch.distributed.get_rank() == 0 else []
    return left_out_tokens(SimpleNamespace(discarded=discarded))


def test_what_was_left_out_is_that_of_all_ranks():
    assert run_ranks(left_out_of_rank) == [6, 6]


def gap_of(sampler, trainer, mask):
    experience = SimpleNamespace(response_mask=torch.tensor(mask), sampler_logprobs=torch.tensor(sampler))
    return sampler_gap(SimpleNamespace(experience=experience, logprobs=torch.tensor(trainer)))


def test_the_gap_between_sampler_and_trainer_by_hand():
    """Probabilities 1/2 and 1/4 of one token: d = -ln 2, |d| = 0.693, k3 = 1/2 + ln 2 - 1 = 0.193; of another token the
    same; padding, far off, counts for nothing.
    """
    gap = gap_of([[math.log(0.5), -1.0, 0.0]], [[math.log(0.25), -1.0, -9.0]], [[True, True, False]])
    assert gap.largest == pytest.approx(math.log(2))
    assert gap.mean == pytest.approx(math.log(2) / 2)
    assert gap.kl == pytest.approx((math.log(2) - 0.5) / 2)
    # The other way round d = ln 2 and k3 = 2 - ln 2 - 1: it is the sampler's tokens that are averaged over.
    assert gap_of([[math.log(0.25)]], [[math.log(0.5)]], [[True]]).kl == pytest.approx(1 - math.log(2))


def test_a_gap_that_is_no_number_stays_one():
    gap = gap_of([[-1.0, -1.0]], [[float("nan"), -1.0]], [[True, True]])
    assert math.isnan(gap.largest) and math.isnan(gap.kl)


def test_a_gap_that_is_no_number_on_one_rank_stays_one(monkeypatch):
    monkeypatch.setattr("atrl.metrics.parallel.gather", lambda value: [value, float("nan")])
    assert math.isnan(gap_of([[-1.0]], [[-2.0]], [[True]]).largest)


def gap_of_rank():
    """The first rank has one token without a gap, the second two: one with the gap above."""
    if torch.distributed.get_rank() == 0:
        return gap_of([[-1.0]], [[-1.0]], [[True]])
    return gap_of([[math.log(0.5), -1.0]], [[math.log(0.25), -1.0]], [[True, True]])


def test_the_gap_is_that_of_all_ranks():
    for gap in run_ranks(gap_of_rank):
        assert gap.largest == pytest.approx(math.log(2))
        assert gap.mean == pytest.approx(math.log(2) / 3)
        assert gap.kl == pytest.approx((math.log(2) - 0.5) / 3)


def test_the_gap_is_logged():
    mask = torch.tensor([[True]])
    experience = SimpleNamespace(response_mask=mask, sampler_logprobs=torch.tensor([[math.log(0.5)]]))
    step = SimpleNamespace(
        groups=[group(1)], discarded=[], experience=experience, logprobs=torch.tensor([[math.log(0.25)]])
    )
    metrics = rollout_metrics(step, 1.0)
    assert metrics["rollout/sampler_trainer_kl"] == pytest.approx(math.log(2) - 0.5)
    assert metrics["rollout/logprob_gap_max"] == pytest.approx(math.log(2))
