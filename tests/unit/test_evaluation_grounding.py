"""What `evaluate.py` says of held-out problems without their pictures: by default, on how many, and when it can't."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from atrl.data.prompts import PromptBuilder
from atrl.evaluation import run
from atrl.evaluation.intervals import wilson_interval
from atrl.evaluation.settings import EvaluateSettings
from atrl.rewards.exact import ExactAnswer
from atrl.rewards.weighted import WeightedReward
from atrl.rollout.base import Sampling
from tests.unit.scripted import Reader, pictured_problems

PROBLEMS = [*pictured_problems(0, 2, 4, 6), replace(pictured_problems(8)[0], answer="99")]
"""A policy that reads gets all but the last right."""


def evaluated(processor, problems=PROBLEMS, **settings):
    """Sampler, result and printed lines of an evaluation of a policy that reads."""
    settings = EvaluateSettings(**{"checkpoint": "c", "samples": 2, "grounding_problems": 4} | settings)
    reader = Reader()
    reader.start = reader.close = lambda *_: None
    rollout = SimpleNamespace(
        prompt_builder=lambda loaded, instruction: PromptBuilder(processor=processor),
        watched_sampler=lambda folder, rescue: reader,
        handle=lambda loaded, problems: None,
        sampling=Sampling(group_size=1),
    )
    model = SimpleNamespace(load=lambda folder: None, instruction="")
    with closing(WeightedReward(parts={"exact": ExactAnswer()})) as reward:
        scores, controls, *_ = run._answer(settings, model, rollout, reward, list(problems), Path())
    result = run._figures(scores, controls)
    about = {"checkpoint": "c", "data": "numbers", "problems": len(problems), "dropped_prompts": 0, "blind": None}
    lines = run._table(about | result, scores, Path("out"), grounding=settings.grounding is not False)
    return reader, result, lines


def test_by_default_it_is_measured_on_the_first_problems(processor):
    """Four of five: read with their own pictures, one blank right by luck (0 is half of 0), no partner's right."""
    reader, result, lines = evaluated(processor)
    assert result["greedy"]["accuracy"] == 0.8
    found = result["grounding"]
    assert (found["left_out"], found["same_answer"]) == (0, 0)
    for name, right in (("true", 4), ("blank", 1), ("swapped", 0)):
        low, high = wilson_interval(right, 4)
        assert found[name] == {"accuracy": right / 4, "ci95": [low, high], "samples": 4}
        assert any(line.startswith(f"  {name:8} {right / 4:.3f}  [{low:.3f}, {high:.3f}]") for line in lines)
    assert "  and without the right pictures, greedily on 4 of these:" in lines
    assert [len(ids) for ids, _ in reader.asked] == [5, 5, 4, 4]  # greedy, sampled, blank, swapped


def test_partners_with_the_same_gold_answer_are_said(processor):
    """Three of four have one answer: two of them get the third's picture or each other's, whatever the pairs are."""
    alike = [replace(one, answer="7") for one in pictured_problems(0, 2, 4)]
    _, result, lines = evaluated(processor, [*alike, *pictured_problems(6)], grounding_problems=None)
    assert result["grounding"]["same_answer"] == 2
    assert [line.endswith("another problem's pictures, 2 of the same gold answer") for line in lines].count(True) == 1


def test_false_leaves_it_out(processor):
    reader, result, lines = evaluated(processor, grounding=False)
    assert "grounding" not in result and len(reader.asked) == 2
    assert not [line for line in lines if "picture" in line]


def test_null_problems_are_all(processor):
    _, result, _ = evaluated(processor, grounding_problems=None)
    assert [result["grounding"][name]["accuracy"] for name in ("true", "blank", "swapped")] == [0.8, 0.2, 0.0]


def test_without_pictures_to_exchange_it_is_said_to_be_missing(processor):
    """Both problems show the same picture."""
    first, second = pictured_problems(2, 4)
    reader, result, lines = evaluated(processor, [first, replace(second, images=first.images)])
    assert "grounding" not in result and len(reader.asked) == 2
    assert "  grounding: not measured, because no two of the problems have different pictures" in lines


def test_a_number_of_problems_that_can_not_be_is_refused():
    with pytest.raises(
        ValueError, match=r"^grounding_problems must be at least 1, got 0: grounding=false leaves .* out$"
    ):
        EvaluateSettings(checkpoint="c", grounding_problems=0)


def test_a_run_gets_a_copy_of_its_figures_wherever_its_home_is(tmp_path, monkeypatch):
    """``~`` reaches the command as it was typed: the shell leaves it behind ``checkpoint=``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("run", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "summary.json").write_text("{}")
    (tmp_path / "evaluation.json").write_text("figures")
    for checkpoint in ("~/run", "~/model", "tiny"):
        run._copy_to_run(tmp_path / "evaluation.json", checkpoint)
    assert (tmp_path / "run" / "evaluation.json").read_text() == "figures"
    assert not (tmp_path / "model" / "evaluation.json").exists()
