"""The weighted sum, the status, the check at load time, and the shipped configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from atrl.rewards.base import RewardPart, Verdict
from atrl.rewards.exact import ExactAnswer
from atrl.rewards.format import BoxedFormat
from atrl.rewards.math_answer import MathAnswer
from atrl.rewards.weighted import WeightedReward, status_of
from atrl.types import Problem, Prompt, Reward, Rollout, RolloutGroup, Status

CONF = Path(__file__).parents[2] / "conf" / "reward"


def problem(answer: str, name: str = "p1") -> Problem:
    return Problem(id=name, question="What?", answer=answer)


def group(answer: str, *responses: tuple[str, bool]) -> RolloutGroup:
    prompt = Prompt(problem=problem(answer), token_ids=[], pixels={}, images=(), engine_token_ids=[])
    rollouts = [Rollout(token_ids=[], logprobs=[], finished=finished) for _, finished in responses]
    return RolloutGroup(prompt, rollouts, [text for text, _ in responses], policy_version=0)


class Batches(RewardPart):
    """Notes what it is asked, and pays half."""

    name = "batches"

    def __init__(self, *, weight: float) -> None:
        super().__init__(weight=weight)
        self.asked: list[tuple[list[str], list[str]]] = []
        self.closed = 0

    def score(self, texts, problems):
        self.asked.append((list(texts), [p.answer for p in problems]))
        return [Verdict(0.5)] * len(texts)

    def close(self):
        self.closed += 1


def test_total_is_the_weighted_sum_and_the_parts_stay_unweighted():
    reward = WeightedReward(parts={"exact": ExactAnswer(weight=2.0), "format": BoxedFormat(weight=0.25)})
    groups = [
        group("5", (r"\boxed{5}", True), (r"\boxed{5} or so", True)),
        group("yes", (r"\boxed{no}", True), ("yes", True), (r"\boxed{no", False)),
    ]
    assert reward.score(groups) == [
        [
            Reward(2.25, {"exact": 1.0, "format": 1.0}, Status.RIGHT),
            Reward(2.0, {"exact": 1.0, "format": 0.0}, Status.RIGHT),
        ],
        [
            Reward(0.25, {"exact": 0.0, "format": 1.0}, Status.WRONG),
            Reward(0.0, {"exact": 0.0, "format": 0.0}, Status.UNPARSEABLE),
            Reward(0.0, {"exact": 0.0, "format": 0.0}, Status.TRUNCATED),
        ],
    ]


@pytest.mark.parametrize(
    ("verdict", "finished", "status"),
    [
        (Verdict(1.0), True, Status.RIGHT),
        (Verdict(1.0), False, Status.RIGHT),
        (Verdict(0.0), False, Status.TRUNCATED),
        (Verdict(0.0, parsed=False), False, Status.TRUNCATED),
        (Verdict(0.0, parsed=False), True, Status.UNPARSEABLE),
        (Verdict(0.0), True, Status.WRONG),
        (Verdict(0.5), True, Status.WRONG),
    ],
)
def test_status_precedence(verdict, finished, status):
    assert status_of(verdict, finished) is status


def test_each_part_sees_all_groups_in_one_call_and_is_closed():
    part = Batches(weight=1.0)
    reward = WeightedReward(parts={"exact": ExactAnswer(), "batches": part})
    groups = [group("1", ("a", True), ("b", True)), group("2"), group("3", ("c", True))]
    assert [len(rewards) for rewards in reward.score(groups)] == [2, 0, 1]
    assert part.asked == [(["a", "b", "c"], ["1", "1", "3"])]
    reward.close()
    assert part.closed == 1


def test_no_groups_have_no_rewards():
    part = Batches(weight=1.0)
    assert WeightedReward(parts={"exact": ExactAnswer(), "batches": part}).score([]) == []
    assert part.asked == []


@pytest.mark.parametrize(
    "parts",
    [{}, {"format": BoxedFormat()}, {"exact": ExactAnswer(), "math": MathAnswer()}],
    ids=["none", "no answer part", "two answer parts"],
)
def test_exactly_one_part_must_judge_the_answer(parts):
    with pytest.raises(ValueError, match=r"reward\.parts must hold exactly one part that judges the answer"):
        WeightedReward(parts=parts)


def test_weights_are_checked():
    with pytest.raises(ValueError, match=r"reward\.parts\.format\.weight must be finite, got nan"):
        BoxedFormat(weight=float("nan"))
    with pytest.raises(ValueError, match=r"reward\.parts\.exact\.weight must be > 0, got 0"):
        ExactAnswer(weight=0.0)
    assert BoxedFormat(weight=0.0).weight == 0.0


def test_check_names_every_bad_gold_in_one_line():
    reward = WeightedReward(parts={"exact": ExactAnswer(), "format": BoxedFormat()})
    reward.check([problem("5"), problem("yes")])
    golds = ["5", "", "$$", "6", " ", ".", "$ $"]
    with pytest.raises(ValueError, match="5 of 7 gold answers can't be scored: problem 'p1'") as info:
        reward.check([problem(gold, f"p{i}") for i, gold in enumerate(golds)])
    message = str(info.value)
    assert all(f"'p{i}'" in message for i in (1, 2, 4, 5, 6))
    assert not any(f"'p{i}'" in message for i in (0, 3))
    assert message.endswith("; likewise 'p5', 'p6'")
    assert "\n" not in message


@pytest.mark.parametrize(("option", "answer_part"), [("exact", ExactAnswer), ("math", MathAnswer)])
def test_the_shipped_configurations_hold_the_defaults(option, answer_part):
    config = OmegaConf.load(CONF / f"{option}.yaml")
    reward = instantiate(config)
    assert isinstance(reward, WeightedReward)
    assert reward.answer_part == option
    assert {name: type(part) for name, part in reward.parts.items()} == {
        option: answer_part,
        "format": BoxedFormat,
    }
    written = {key: value for key, value in config.parts[option].items() if key != "_target_"}
    assert written == answer_part.__init__.__kwdefaults__
    assert config.parts.format.weight == BoxedFormat.__init__.__kwdefaults__["weight"]


def test_the_shipped_exact_reward_scores():
    reward = instantiate(OmegaConf.load(CONF / "exact.yaml"))
    ((first,),) = reward.score([group("(2, 3)", (r"so \boxed{(2,3)}", True))])
    assert first == Reward(pytest.approx(1.1), {"exact": 1.0, "format": 1.0}, Status.RIGHT)
