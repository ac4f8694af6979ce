"""Dynamic sampling on problems whose rewards are known beforehand: u has unequal ones, e equal ones."""

from __future__ import annotations

import pytest

from atrl.rollout.dynamic import DynamicSampling, rewards_differ
from atrl.types import Problem, Prompt, Reward, RolloutGroup, Status


def prompt(name: str) -> Prompt:
    return Prompt(Problem(name, "?", "1"), token_ids=[1], pixels={}, images=(), engine_token_ids=[1])


def rewards_of(name: str) -> list[Reward]:
    totals = (1.0, 0.0) if name.startswith("u") else (0.5, 0.5)
    return [Reward(total, {}, Status.WRONG) for total in totals]


class Source:
    """Hands out `queue` in order, and writes down what it was asked for."""

    def __init__(self, queue: str) -> None:
        self.queue, self.asked, self.draws = queue.split(), [], []

    def more(self, count: int) -> list[Prompt]:
        self.asked.append(count)
        names, self.queue = self.queue[:count], self.queue[count:]
        return [prompt(name) for name in names]

    def draw(self, prompts, attempt):
        names = [entry.problem.id for entry in prompts]
        self.draws.append((attempt, names))
        return [RolloutGroup(entry, [], [], 0) for entry in prompts], [rewards_of(name) for name in names]


def fill(first: str, queue: str = "", **options):
    source = Source(queue)
    batch = DynamicSampling(**options).fill(
        [prompt(name) for name in first.split()], draw=source.draw, more=source.more
    )
    assert batch.rewards == [rewards_of(name) for name in names_of(batch.groups)]
    assert all(rewards == rewards_of(group.prompt.problem.id) for group, rewards in batch.discarded)
    assert len(batch.groups) == len(first.split())
    return batch, source


def names_of(groups) -> list[str]:
    return [group.prompt.problem.id for group in groups]


def discarded(batch) -> list[str]:
    return names_of(group for group, _ in batch.discarded)


def counts(batch) -> tuple[int, int, int]:
    return batch.drawn_groups, batch.discarded_groups, batch.filled_up_groups


def test_a_batch_without_equal_groups_is_drawn_once():
    batch, source = fill("u1 u2 u3", "u4")
    assert names_of(batch.groups) == ["u1", "u2", "u3"]
    assert counts(batch) == (3, 0, 0)
    assert source.draws == [(0, ["u1", "u2", "u3"])] and source.asked == []


def test_equal_groups_are_replaced_by_others_until_none_is_missing():
    """Two are missing after the first draw, one after the second, none after the third."""
    batch, source = fill("u1 e1 u2 e2", "e3 u3 u4 u5")
    assert names_of(batch.groups) == ["u1", "u2", "u3", "u4"]
    assert discarded(batch) == ["e1", "e2", "e3"]
    assert counts(batch) == (7, 3, 0)
    assert source.draws == [(0, ["u1", "e1", "u2", "e2"]), (1, ["e3", "u3"]), (2, ["u4"])]
    assert source.queue == ["u5"]


def test_at_the_bound_the_equal_groups_drawn_last_fill_the_batch_in_order():
    """Draws: e1 u1 e2 | e3 u2 | e4: two are kept, and of e1, e2, e3, e4 the last one fills up."""
    batch, source = fill("e1 u1 e2", "e3 u2 e4 u3", max_draws=3)
    assert names_of(batch.groups) == ["u1", "u2", "e4"]
    assert discarded(batch) == ["e1", "e2", "e3"]
    assert counts(batch) == (6, 3, 1)
    assert source.asked == [2, 1]


def test_what_fills_up_stands_where_it_was_drawn():
    """Draws: e1 e2 u1 | e3 u2: the last equal group was drawn before u2."""
    batch, _ = fill("e1 e2 u1", "e3 u2", max_draws=2)
    assert names_of(batch.groups) == ["u1", "e3", "u2"]
    assert discarded(batch) == ["e1", "e2"]
    assert counts(batch) == (5, 2, 1)


def test_with_nothing_but_equal_groups_the_last_draw_is_the_batch():
    batch, source = fill("e1 e2", "e3 e4 e5 e6 e7 e8 e9", max_draws=4)
    assert names_of(batch.groups) == ["e7", "e8"]
    assert counts(batch) == (8, 6, 2)
    assert len(source.draws) == 4 and source.queue == ["e9"]


def test_a_bound_of_one_replaces_nothing():
    batch, source = fill("e1 u1 e2", "u2 u3", max_draws=1)
    assert names_of(batch.groups) == ["e1", "u1", "e2"]
    assert counts(batch) == (3, 0, 2)
    assert source.asked == []


def test_which_groups_compare_anything():
    assert rewards_differ(rewards_of("u"))
    assert not rewards_differ(rewards_of("e"))
    parts = [Reward(1.0, {"a": 1.0}, Status.RIGHT), Reward(1.0, {"a": 0.5}, Status.WRONG)]
    assert not rewards_differ(parts)  # only the totals reach the advantage


def test_too_few_groups_or_prompts_are_noticed():
    with pytest.raises(AssertionError, match="2 further prompts were asked for, 1 came"):
        fill("e1 e2", "u1")
    with pytest.raises(AssertionError, match="1 prompts were drawn, 0 groups came back"):
        DynamicSampling().fill([prompt("u1")], draw=lambda prompts, attempt: ([], []), more=lambda count: [])


def test_the_bound_is_checked():
    with pytest.raises(ValueError, match=r"algorithm\.dynamic_sampling\.max_draws must be at least 1, got 0: .*=null"):
        DynamicSampling(max_draws=0)
