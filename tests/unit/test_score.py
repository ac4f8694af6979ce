"""Accuracy of written-down answers: what is counted, which interval it gets, and the same over several processes."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest

from atrl import parallel
from atrl.evaluation.intervals import wilson_interval
from atrl.evaluation.score import held_out_sampling, score, score_together
from atrl.rewards.exact import ExactAnswer
from atrl.rewards.weighted import WeightedReward
from atrl.rollout.base import Sampling
from tests.unit.ranks import run_ranks
from tests.unit.scripted import CUT, NO_ANSWER, RIGHT, WRONG, Scripted, numbered_prompts


def scored(script: dict[str, list[str]]):
    reward = WeightedReward(parts={"exact": ExactAnswer()})
    return score(Scripted(script), numbered_prompts(len(script)), reward, Sampling(group_size=1), seed="s")


def test_one_sample_a_problem_is_a_share_of_independent_trials():
    found = scored({"p0": [RIGHT], "p1": [WRONG], "p2": [CUT], "p3": [NO_ANSWER]})
    assert (found.accuracy, found.samples) == (0.25, 4)
    assert found.statuses == {"right": 1, "wrong": 1, "unparseable": 1, "truncated": 1}
    assert found.ci95 == wilson_interval(1, 4)


def test_several_samples_a_problem_are_not_independent():
    """Shares 1, 1/2 and 0: mean 1/2, standard deviation 1/2, so 1/2 ± 1.96·(1/2)/√3, cut at 0 and 1."""
    found = scored({"p0": [RIGHT] * 4, "p1": [RIGHT, WRONG] * 2, "p2": [WRONG] * 4})
    assert (found.accuracy, found.samples) == (0.5, 12)
    assert found.ci95 == (0.0, 1.0)
    found = scored({"p0": [RIGHT, RIGHT], "p1": [RIGHT, WRONG], "p2": [RIGHT, WRONG], "p3": [RIGHT, WRONG]})
    half = 1.959963984540054 * sqrt((3 * 0.125**2 + 0.375**2) / 3 / 4)
    assert found.ci95 == pytest.approx((0.625 - half, 0.625 + half))


def test_of_a_single_problem_only_its_samples_can_be_counted():
    assert scored({"p0": [RIGHT, WRONG, WRONG]}).ci95 == wilson_interval(1, 3)


def test_without_a_problem_there_is_no_accuracy():
    with pytest.raises(ValueError, match="there is no problem to score"):
        scored({})


@pytest.mark.parametrize(("greedy", "temperature"), [(False, 1.0), (True, 0.0)])
def test_held_out_problems_are_answered_at_one_temperature_whatever_the_training_uses(greedy, temperature):
    training = Sampling(group_size=8, temperature=0.6, max_response_tokens=30, top_k=5, top_p=0.9, min_p=0.1)
    expected = Sampling(group_size=3, temperature=temperature, max_response_tokens=30)
    assert held_out_sampling(training, samples=3, greedy=greedy) == expected


SCRIPT = {"p0": [RIGHT, WRONG], "p1": [WRONG, WRONG], "p2": [RIGHT, RIGHT], "p3": [CUT, RIGHT], "p4": [RIGHT, RIGHT]}


def shared_score():
    """What a rank's sampler was asked for, and the score that it gets; pixels that are sent around would not arrive."""
    sampler, reward = Scripted(SCRIPT), WeightedReward(parts={"exact": ExactAnswer()})
    prompts = [replace(prompt, pixels={"pixel_values": lambda: "can't be pickled"}) for prompt in numbered_prompts(5)]
    found = score_together(sampler, prompts, reward, Sampling(group_size=2), seed="s")
    assert all(group.prompt is prompt for group, prompt in zip(found.groups, prompts, strict=True))
    problems = [group.prompt.problem.id for group in found.groups]
    return parallel.rank(), sampler.asked, (found.accuracy, found.ci95, found.samples, found.statuses, problems)


def score_of_one():
    """Fewer problems than ranks: the first rank has none."""
    sampler, reward = Scripted(SCRIPT), WeightedReward(parts={"exact": ExactAnswer()})
    found = score_together(sampler, numbered_prompts(1), reward, Sampling(group_size=2), seed="s")
    return sampler.asked, found.accuracy, found.samples


def test_a_rank_without_a_problem_knows_the_whole_too():
    first, second = run_ranks(score_of_one)
    assert (first, second) == (([([], "s")], 0.5, 2), ([(["p0"], "s")], 0.5, 2))
    with pytest.raises(ValueError, match="there is no problem to score"):
        score_together(
            Scripted({}), [], WeightedReward(parts={"exact": ExactAnswer()}), Sampling(group_size=2), seed="s"
        )


def test_ranks_answer_a_share_each_and_know_the_whole():
    _, _, alone = shared_score()
    first, second = run_ranks(shared_score)
    assert first == (0, [(["p0", "p1"], "s")], alone) and second == (1, [(["p2", "p3", "p4"], "s")], alone)
