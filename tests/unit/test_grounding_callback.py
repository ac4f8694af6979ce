"""When a run measures grounding and what it logs: of a policy that guesses, and reads from the second step on."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from atrl.callbacks.evaluate import EvaluateCallback
from atrl.callbacks.grounding import GroundingCallback
from atrl.data.prompts import PromptBuilder
from atrl.evaluation.grounding import build_controls
from atrl.evaluation.intervals import wilson_interval
from atrl.rewards.exact import ExactAnswer
from atrl.rewards.weighted import WeightedReward
from atrl.rollout.base import Sampling
from atrl.rollout.bound import BoundRollouts
from tests.unit.scripted import Reader, pictured_problems

GUESSING = {"true": 0.25, "blank": 0.25, "swapped": 0.25}
"""Of the answers 0, 2, 4 and 6 a guess of 0 is right about one, whatever is shown."""
READING = {"true": 1.0, "blank": 0.25, "swapped": 0.0}
"""A blank says half of its picture's number, which is that number for 0 alone; nobody's partner has its number."""
NUMBERS = (0, 2, 4, 6)


class Run:
    """The two callbacks of a run, called as Lightning calls them."""

    def __init__(self, folder: Path, processor, *, every: int | None) -> None:
        builder = PromptBuilder(processor=processor)
        prompts = builder.build_all(pictured_problems(*NUMBERS)).prompts
        self.reader, self.logged = Reader(reads=False), []
        self.evaluation = EvaluateCallback(prompts, samples=1, every=every, seed=0)
        self.grounding = GroundingCallback(build_controls(prompts, builder, seed=0), self.evaluation, folder)
        self.module = SimpleNamespace(
            steps_done=0,
            first_step=0,
            reward=WeightedReward(parts={"exact": ExactAnswer()}),
            rollouts=BoundRollouts(self.reader, Sampling(group_size=4)),
            timer=SimpleNamespace(phase=lambda name: nullcontext()),
            trainer=SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext)),
        )
        log = SimpleNamespace(log_metrics=lambda metrics, step: self.logged.append((step, metrics)))
        self.trainer = SimpleNamespace(
            loggers=[log], lightning_module=self.module, fit_loop=SimpleNamespace(total_batch_idx=-1)
        )

    def train(self, steps: int) -> Run:
        """So many steps, from the beginning to the end."""
        self._call("on_train_start")
        for step in range(steps):
            self.trainer.fit_loop.total_batch_idx = step
            self.module.steps_done = step + 1
            self.reader.reads = step >= 1
            self._call("on_train_batch_end", None, None, step)
        self._call("on_train_end")
        return self

    def _call(self, name: str, *more) -> None:
        for callback in (self.evaluation, self.grounding):
            getattr(callback, name)(self.trainer, self.module, *more)

    @property
    def curve(self) -> list[tuple[int, dict[str, float]]]:
        """How many steps the policy has had, and the three accuracies."""
        return [
            (step, {name.removeprefix("eval/picture_"): value for name, value in metrics.items()})
            for step, metrics in self.logged
            if "eval/picture_true" in metrics
        ]


def test_the_three_are_measured_before_on_the_way_and_after(tmp_path, processor):
    run = Run(tmp_path, processor, every=2).train(5)
    assert run.curve == [(0, GUESSING), (2, READING), (4, READING), (5, READING)]
    assert [(step, metrics["eval/accuracy"]) for step, metrics in run.logged if "eval/accuracy" in metrics] == [
        (2, 1.0), (4, 1.0),
    ]  # fmt: skip
    found = json.loads((tmp_path / "grounding.json").read_text())
    for moment, expected in (("before", GUESSING), ("after", READING)):
        for name, accuracy in expected.items():
            interval = pytest.approx(wilson_interval(round(4 * accuracy), 4))
            assert found[moment][name] == {"accuracy": accuracy, "ci95": interval, "samples": 4}


def test_every_time_the_same_problems_and_random_numbers(tmp_path, processor):
    """True, blank, swapped: at each of the four times."""
    asked = Run(tmp_path, processor, every=2).train(5).reader.asked
    assert asked == [([f"n{number}" for number in NUMBERS], "0/held-out")] * 12


def test_the_last_step_is_not_scored_twice(tmp_path, processor):
    run = Run(tmp_path, processor, every=2).train(4)
    assert [step for step, _ in run.curve] == [0, 2, 4]
    assert len(run.reader.asked) == 9
    assert run.evaluation.after.accuracy == 1.0
    assert {name: score.accuracy for name, score in run.grounding.after.items()} == READING


def test_without_evaluations_on_the_way_there_are_two_points(tmp_path, processor):
    run = Run(tmp_path, processor, every=None).train(3)
    assert run.curve == [(0, GUESSING), (3, READING)]


def test_what_was_measured_when_the_run_began_is_not_measured_again(tmp_path, processor):
    first = Run(tmp_path, processor, every=2).train(2)
    goes_on = Run(tmp_path, processor, every=2)
    for name in ("evaluation", "grounding"):
        getattr(goes_on, name).load_state_dict(json.loads(json.dumps(getattr(first, name).state_dict())))
    goes_on.train(2)
    assert [step for step, _ in goes_on.curve] == [2] and len(goes_on.reader.asked) == 3


def test_a_run_that_goes_on_may_begin_to_measure_it(tmp_path, processor):
    """A checkpoint holds the accuracy and not the rollouts that it is of, so these are drawn."""
    first = Run(tmp_path, processor, every=2).train(2)
    goes_on = Run(tmp_path, processor, every=2)
    goes_on.evaluation.load_state_dict(json.loads(json.dumps(first.evaluation.state_dict())))
    goes_on.train(1)
    assert [found for _, found in goes_on.curve] == [GUESSING, GUESSING]
