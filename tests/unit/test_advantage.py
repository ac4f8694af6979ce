"""Group advantages by hand, and the shuffled control."""

from __future__ import annotations

import pytest
import torch

from atrl.advantage import GroupAdvantage, ShuffledAdvantage


def test_std_divides_by_the_sample_deviation_plus_epsilon():
    """[0, 3, 6]: mean 3, sample variance (9 + 0 + 9) / 2 = 9, so ±3 / (3 + 1). [1, 1, 4]: mean 2, variance 6/2 = 3."""
    rewards = torch.tensor([[0.0, 3.0, 6.0], [1.0, 1.0, 4.0]])
    advantages = GroupAdvantage(scale="std", epsilon=1.0)(rewards)
    small = -1 / (3**0.5 + 1)
    torch.testing.assert_close(advantages, torch.tensor([[-0.75, 0.0, 0.75], [small, small, -2 * small]]))


def test_none_only_subtracts_the_mean():
    rewards = torch.tensor([[0.0, 3.0, 6.0], [1.0, 1.0, 4.0]])
    advantages = GroupAdvantage(scale="none")(rewards)
    assert advantages.tolist() == [[-3.0, 0.0, 3.0], [-1.0, -1.0, 2.0]]


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("epsilon", [1e-4, 0.0])
@pytest.mark.parametrize("reward", [0.0, 0.7, 1.1])
def test_a_group_of_equal_rewards_has_exactly_no_advantage(scale, epsilon, reward):
    """The mean of eight times 0.7 is not 0.7 in float32; the difference must not be divided by an equally small one."""
    advantages = GroupAdvantage(scale=scale, epsilon=epsilon)(torch.full((1, 8), reward))
    assert advantages.tolist() == [[0.0] * 8]


@pytest.mark.parametrize("estimator", [GroupAdvantage(), ShuffledAdvantage()])
def test_a_group_of_one_is_refused(estimator):
    with pytest.raises(ValueError, match=r"rollout\.group_size must be at least 2.*got 1"):
        estimator(torch.ones(4, 1), seed="0/0")


def test_two_are_enough_to_compare():
    """[0, 2]: mean 1, sample variance (1 + 1) / 1 = 2; with epsilon 0 that is ∓1/√2."""
    advantages = GroupAdvantage(epsilon=0.0)(torch.tensor([[0.0, 2.0]]))
    torch.testing.assert_close(advantages, torch.tensor([[-(0.5**0.5), 0.5**0.5]]))


def test_epsilon_is_checked():
    with pytest.raises(ValueError, match=r"algorithm\.advantage\.epsilon .* got -1"):
        GroupAdvantage(epsilon=-1)


REWARDS = torch.randn(16, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("scale", ["std", "none"])
def test_shuffled_is_a_permutation_of_the_group_advantages(scale):
    plain = GroupAdvantage(scale=scale)(REWARDS)
    shuffled = ShuffledAdvantage(scale=scale)(REWARDS, seed="0/3")
    assert shuffled.shape == plain.shape
    assert not torch.equal(shuffled, plain)
    assert torch.equal(shuffled.flatten().sort().values, plain.flatten().sort().values)


def test_shuffled_depends_on_its_seed_alone():
    deal = ShuffledAdvantage()
    first = deal(REWARDS, seed="0/3")
    state = torch.get_rng_state()
    torch.manual_seed(123)
    assert torch.equal(first, deal(REWARDS, seed="0/3"))
    assert not torch.equal(first, deal(REWARDS, seed="0/4"))
    torch.set_rng_state(state)
    deal(REWARDS, seed="0/5")
    assert torch.equal(state, torch.get_rng_state()), "the global random state was used"


def test_shuffled_deals_over_the_whole_batch():
    """The first group's advantages are ±1 and the second's ±10: within groups no 10 could reach the first row."""
    rewards = torch.tensor([[0.0, 2.0] * 4, [0.0, 20.0] * 4])
    shuffled = ShuffledAdvantage(scale="none")(rewards, seed="0/0")
    assert (shuffled[0].abs() == 10).any() and (shuffled[1].abs() == 1).any()
