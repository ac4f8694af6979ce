"""Dynamic sampling on problems whose rewards are known beforehand: u has unequal ones, e equal ones.

In one process, and in several that share the work.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from atrl import parallel
from atrl.loss.overlong import OverlongPenalty
from atrl.module import PolicyModule
from atrl.rollout.dynamic import Choice, DynamicSampling, choose, rewards_differ, sampling_metrics
from atrl.timing import PhaseTimer
from atrl.types import Problem, Prompt, Reward, Rollout, RolloutGroup, Status
from tests.unit.ranks import run_ranks


def prompt(name: str) -> Prompt:
    problem = Problem(name, "?", "1", images=(Path(f"{name}.png"),))
    pixels = {"pixel_values": torch.full((1,), float(name[1:]))}
    return Prompt(problem, token_ids=[1], pixels=pixels, images=(), engine_token_ids=[1])


def rewards_of(name: str) -> list[Reward]:
    totals = (1.0, 0.0) if name.startswith("u") else (0.5, 0.5)
    return [Reward(total, {}, Status.WRONG) for total in totals]


def test_lengths_alone_do_not_make_a_group_count():
    """Both answers of e1 are wrong; one is cut off, which costs it 1 only after e1 was left out for u2."""
    source = Source("u2")
    objective = SimpleNamespace(dynamic_sampling=DynamicSampling(max_draws=2), overlong=OverlongPenalty())

    def generate(prompts, *, seed):
        groups = [group_of(entry) for entry in prompts]
        for group in groups:
            group.rollouts[1] = replace(group.rollouts[1], finished=False)
        return groups

    module = SimpleNamespace(
        timer=PhaseTimer(),
        rollouts=SimpleNamespace(generate=generate),
        reward=SimpleNamespace(score=lambda groups: [rewards_of(group.prompt.problem.id) for group in groups]),
        objective=objective,
        stream=source,
        max_response_tokens=64,
    )
    drawn = PolicyModule._draw(module, [prompt("e1")], "0")
    assert [group.prompt.problem.id for group in drawn.groups] == ["u2"] and drawn.choice.filled_up == 0
    assert [[reward.total for reward in group] for group in drawn.rewards] == [[1.0, -1.0]]
    [(left, rewards)] = drawn.discarded
    assert left.prompt.problem.id == "e1" and [reward.total for reward in rewards] == [0.5, -0.5]
    assert [reward.parts["overlong"] for reward in rewards] == [0.0, -1.0]


class Source:
    """Hands out `queue` in order, and writes down what it was asked for."""

    def __init__(self, queue: str) -> None:
        self.queue, self.asked, self.draws, self.built = queue.split(), [], [], []

    def take(self, count: int) -> list[Prompt]:
        self.asked.append(count)
        names, self.queue = self.queue[:count], self.queue[count:]
        return [prompt(name) for name in names]

    def again(self, left: Prompt) -> Prompt:
        self.built.append(left.problem.id)
        return prompt(left.problem.id)

    def draw(self, prompts, attempt):
        names = [entry.problem.id for entry in prompts]
        self.draws.append((attempt, names))
        return [group_of(entry) for entry in prompts], [rewards_of(name) for name in names]


def group_of(entry: Prompt) -> RolloutGroup:
    """Two responses that hold the problem's number, and its name."""
    name = entry.problem.id
    rollouts = [Rollout([int(name[1:]), sample], [-0.5, -1.0], finished=True) for sample in range(2)]
    return RolloutGroup(entry, rollouts, [name, name], policy_version=3)


def fill(first: str, queue: str = "", **options):
    source = Source(queue)
    batch = DynamicSampling(**options).fill([prompt(name) for name in first.split()], draw=source.draw, stream=source)
    assert batch.rewards == [rewards_of(name) for name in names_of(batch.groups)]
    assert all(rewards == rewards_of(group.prompt.problem.id) for group, rewards in batch.discarded)
    assert len(batch.groups) == len(first.split())
    return batch, source


def names_of(groups) -> list[str]:
    return [group.prompt.problem.id for group in groups]


def discarded(batch) -> list[str]:
    return names_of(group for group, _ in batch.discarded)


def counts(batch) -> tuple[int, int, int]:
    metrics = sampling_metrics(batch.choice)
    return tuple(int(metrics[f"rollout/{name}_groups"]) for name in ("drawn", "discarded", "filled_up"))


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
    assert not rewards_differ([Reward(total, {}, Status.RIGHT) for total in (0.1 + 0.2, 0.3)])  # nor what is rounding


def test_too_few_groups_or_prompts_are_noticed():
    with pytest.raises(AssertionError, match="2 further prompts were asked for, 1 came"):
        fill("e1 e2", "u1")
    with pytest.raises(AssertionError, match="1 prompts were drawn, 0 groups came back"):
        DynamicSampling().fill([prompt("u1")], draw=lambda prompts, attempt: ([], []), stream=Source(""))


def test_the_bound_is_checked():
    with pytest.raises(ValueError, match=r"algorithm\.dynamic_sampling\.max_draws must be at least 1, got 0: .*=null"):
        DynamicSampling(max_draws=0)


@pytest.mark.parametrize(
    ("drawn", "size", "kept", "left_out", "filled_up"),
    [
        ("uuu", 3, [0, 1, 2], [], 0),
        ("ueueeuu", 4, [0, 2, 5, 6], [1, 3, 4], 0),
        ("eueeue", 3, [1, 4, 5], [0, 2, 3], 1),
        ("eeueu", 3, [2, 3, 4], [0, 1], 1),
        ("eeee", 2, [2, 3], [0, 1], 2),
        ("eue", 3, [0, 1, 2], [], 2),
    ],
)
def test_which_groups_are_kept(drawn, size, kept, left_out, filled_up):
    """u differs, e is equal: all that differ stay, the equal ones drawn last fill up, all in the order of drawing."""
    choice = choose([letter == "u" for letter in drawn], size)
    assert choice == Choice(kept=kept, left_out=left_out, filled_up=filled_up)


@pytest.mark.parametrize(("drawn", "size"), [("uuu", 2), ("ue", 3)])
def test_a_batch_that_can_not_be_filled_is_noticed(drawn, size):
    with pytest.raises(AssertionError, match=f"do not give {size}"):
        choose([letter == "u" for letter in drawn], size)


def fill_share(cases: list[tuple[str, str, dict]]) -> list[dict]:
    """As one of several ranks: what this one drew and ended with, case by case."""
    found = []
    for first, queue, options in cases:
        source = Source(queue)
        share = [prompt(name) for name in parallel.share(first.split())]
        batch = DynamicSampling(**options).fill(share, draw=source.draw, stream=source)
        assert batch.rewards == [rewards_of(name) for name in names_of(batch.groups)]
        for group in batch.groups:
            expected = group_of(prompt(group.prompt.problem.id))
            assert (group.rollouts, group.texts, group.policy_version) == (expected.rollouts, expected.texts, 3)
            assert group.prompt.problem == expected.prompt.problem
            assert torch.equal(group.prompt.pixels["pixel_values"], expected.prompt.pixels["pixel_values"])
        for group, rewards in batch.discarded:
            expected = group_of(prompt(group.prompt.problem.id))
            assert (group.rollouts, rewards) == (expected.rollouts, rewards_of(group.prompt.problem.id))
            assert group.prompt.pixels == {} and group.prompt.problem.images == ()
        found.append(
            {
                "draws": source.draws,
                "kept": names_of(batch.groups),
                "left out": discarded(batch),
                "built": source.built,
                "asked": source.asked,
                "queue": source.queue,
                "counts": counts(batch),
            }
        )
    return found


def test_two_ranks_fill_the_batch_that_one_process_fills():
    """By hand, of n groups rank 0 has those below ⌊n/2⌋, of what is drawn as of what is kept and of what is left out.

    The first case is that of `test_equal_groups_are_replaced_by_others_until_none_is_missing`, whose last prompt rank 0
    has no share of; the second that of `test_at_the_bound_…`, where e4 fills up; in the third the first rank draws
    all that is useful; in the fourth nothing is replaced, and nothing moves.
    """
    cases = [
        ("u1 e1 u2 e2", "e3 u3 u4 u5", {}),
        ("e1 u1 e2", "e3 u2 e4 u3", {"max_draws": 3}),
        ("u1 u2 e1 e2", "u3 u4", {}),
        ("u1 u2 u3 u4", "u5", {}),
    ]
    first, second = run_ranks(fill_share, cases)
    assert first[0] == {
        "draws": [(0, ["u1", "e1"]), (1, ["e3"]), (2, [])],
        "kept": ["u1", "u2"],
        "left out": ["e1"],
        "built": ["u2"],
        "asked": [2, 1],
        "queue": ["u5"],
        "counts": (7, 3, 0),
    }
    assert second[0] == {
        "draws": [(0, ["u2", "e2"]), (1, ["u3"]), (2, ["u4"])],
        "kept": ["u3", "u4"],
        "left out": ["e2", "e3"],
        "built": [],
        "asked": [2, 1],
        "queue": ["u5"],
        "counts": (7, 3, 0),
    }
    assert (first[1]["kept"], second[1]["kept"]) == (["u1"], ["u2", "e4"])
    assert (first[1]["left out"], second[1]["left out"]) == (["e1"], ["e2", "e3"])
    assert (first[1]["draws"][2], second[1]["draws"][2]) == ((2, []), (2, ["e4"]))
    assert first[1]["counts"] == second[1]["counts"] == (6, 3, 1)
    assert (first[2]["kept"], second[2]["kept"]) == (["u1", "u2"], ["u3", "u4"])
    assert (first[2]["built"], second[2]["built"]) == ([], ["u3"])
    assert (first[3]["kept"], second[3]["kept"]) == (["u1", "u2"], ["u3", "u4"])
    assert first[3]["built"] == second[3]["built"] == first[3]["asked"] == []


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_split_changes_nothing(world):
    """Any number of ranks, up to one a prompt, against one process."""
    first, queue = "e1 u1 e2 e3 u2", "e4 u3 e5 e6 u4 u5 e7 u6"
    cases = [(first, queue, {"max_draws": draws}) for draws in (1, 2, 3, 4)]
    ranks = run_ranks(fill_share, cases, world=world)
    for number, (_, _, options) in enumerate(cases):
        batch, source = fill(first, queue, **options)
        shares = [rank[number] for rank in ranks]
        assert [name for share in shares for name in share["kept"]] == names_of(batch.groups)
        assert [name for share in shares for name in share["left out"]] == discarded(batch)
        assert {len(share["draws"]) for share in shares} == {options["max_draws"]}
        assert all((share["counts"], share["queue"]) == (counts(batch), source.queue) for share in shares)
        assert max(len(share["kept"]) for share in shares) - min(len(share["kept"]) for share in shares) <= 1
