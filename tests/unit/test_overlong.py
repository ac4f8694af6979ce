"""The overlong penalty, by hand."""

from __future__ import annotations

import pytest
import torch

from atrl.loss.overlong import OverlongPenalty
from atrl.types import Problem, Prompt, Reward, Rollout, RolloutGroup, Status


@pytest.mark.parametrize(
    ("length", "finished", "expected"),
    [
        (0, True, 0.0),
        (1, True, 0.0),
        (16, True, 0.0),  # 20 - 4: the last length that is free
        (17, True, -0.25),  # (16 - 17) / 4
        (18, True, -0.5),
        (19, True, -0.75),
        (20, True, -1.0),  # ended with the last token that it had
        (20, False, -1.0),
        (3, False, -1.0),  # cut by another limit, as that of the context
    ],
)
def test_by_hand(length, finished, expected):
    """L = 20, a cache of 4."""
    penalty = OverlongPenalty(cache_tokens=4).penalty(torch.tensor([[length]]), torch.tensor([[finished]]), 20)
    assert penalty.tolist() == [[expected]]


def test_it_is_weighed_and_keeps_the_shape():
    lengths, finished = torch.tensor([[16, 17], [18, 9]]), torch.tensor([[True, True], [True, False]])
    penalty = OverlongPenalty(cache_tokens=4, weight=0.5).penalty(lengths, finished, 20)
    assert penalty.tolist() == [[0.0, -0.125], [-0.25, -0.5]]


def test_a_cache_of_the_whole_limit_falls_from_the_first_token():
    lengths = torch.tensor([[0, 1, 2, 3, 4]])
    penalty = OverlongPenalty(cache_tokens=4).penalty(lengths, torch.ones(1, 5).bool(), 4)
    assert penalty.tolist() == [[0.0, -0.25, -0.5, -0.75, -1.0]]
    with pytest.raises(AssertionError, match="above the response limit"):
        OverlongPenalty(cache_tokens=5).penalty(lengths, torch.ones(1, 5).bool(), 4)


@pytest.mark.parametrize(("limit", "cache"), [(64, 12), (20_480, 4_096), (4, 1)])
def test_a_fifth_of_the_limit_unless_said_otherwise(limit, cache):
    """⌊L / 5⌋, but one token at least: half of it is left at a penalty of a half."""
    lengths = torch.tensor([[limit - cache, limit - cache // 2, limit]])
    penalty = OverlongPenalty().penalty(lengths, torch.ones(1, 3).bool(), limit)
    assert penalty.tolist() == [[0.0, -0.5 if cache > 1 else -1.0, -1.0]]


def test_rewards_get_it_and_say_so():
    prompt = Prompt(Problem("p", "?", "1"), token_ids=[1], pixels={}, images=(), engine_token_ids=[1])
    rollouts = [Rollout([5] * length, [0.0] * length, finished) for length, finished in [(2, True), (18, True)]]
    cut = Rollout([5] * 20, [0.0] * 20, finished=False)
    groups = [RolloutGroup(prompt, rollouts, ["", ""], 0), RolloutGroup(prompt, [cut], [""], 0)]
    right = Reward(1.0, {"exact": 1.0}, Status.RIGHT)
    rewards = [[right, right], [Reward(0.0, {"exact": 0.0}, Status.TRUNCATED)]]
    assert OverlongPenalty(cache_tokens=4, weight=0.5).apply(groups, rewards, 20) == [
        [
            Reward(1.0, {"exact": 1.0, "overlong": 0.0}, Status.RIGHT),
            Reward(0.75, {"exact": 1.0, "overlong": -0.5}, Status.RIGHT),
        ],
        [Reward(-0.5, {"exact": 0.0, "overlong": -1.0}, Status.TRUNCATED)],
    ]
    assert right == Reward(1.0, {"exact": 1.0}, Status.RIGHT)


def test_options_are_checked():
    with pytest.raises(
        ValueError, match=r"algorithm\.overlong\.cache_tokens must be at least 1, got 0: null is a fifth"
    ):
        OverlongPenalty(cache_tokens=0)
    with pytest.raises(ValueError, match=r"algorithm\.overlong\.weight must be positive, got 0\.0: .*=null is off"):
        OverlongPenalty(cache_tokens=1, weight=0.0)
