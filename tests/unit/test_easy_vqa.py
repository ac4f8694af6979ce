"""The open questions of easy-VQA: sizes, splits, worked answers, blind baseline."""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from atrl.data.base import ProblemSource
from atrl.data.easy_vqa import EasyVqaProblems, majority_answers, worked_answer
from atrl.data.images import open_image
from atrl.types import Problem

CONFIG = Path(__file__).parents[2] / "conf/data/easy_vqa.yaml"


@pytest.fixture(scope="module")
def splits():
    source = EasyVqaProblems()
    return {split: source.load(split) for split in ("train", "selection", "test")}


def pictures(problems) -> set[Path]:
    return {image for problem in problems for image in problem.images}


def test_published_sizes(splits):
    """Counted in the package's files: 10,168 open questions for training and 2,537 for the test."""
    assert len(EasyVqaProblems(selection_fraction=0).load("train")) == 10_168
    assert len(splits["train"]) + len(splits["selection"]) == 10_168
    assert len(splits["test"]) == 2_537


def test_only_open_questions(splits):
    answers = {problem.answer for problems in splits.values() for problem in problems}
    shapes = {"circle", "rectangle", "triangle"}
    colours = {"green", "red", "gray", "teal", "black", "yellow", "brown", "blue"}
    assert answers == shapes | colours


def test_no_picture_and_no_id_is_in_two_splits(splits):
    for first, second in (("train", "selection"), ("train", "test"), ("selection", "test")):
        assert not pictures(splits[first]) & pictures(splits[second])
        assert not {p.id for p in splits[first]} & {p.id for p in splits[second]}
    ids = [problem.id for problems in splits.values() for problem in problems]
    assert len(set(ids)) == len(ids)


def test_selection_fraction_is_about_what_was_asked(splits):
    """3,816 training pictures have an open question; 5 % is 191 ± 13 (binomial), here within 4 deviations."""
    assert 191 - 54 <= len(pictures(splits["selection"])) <= 191 + 54


def test_question_has_one_mark_and_its_picture_opens(splits):
    for problem in (*splits["train"][::500], *splits["test"][::500]):
        assert problem.question.startswith("<image>what ") and problem.question.count("<image>") == 1
        (path,) = problem.images
        assert open_image(path, problem_id=problem.id).size == (64, 64)


def test_every_target_ends_in_its_boxed_answer(splits):
    for problem in (*splits["train"], *splits["selection"], *splits["test"]):
        assert re.fullmatch(rf"[A-Z].* \\boxed\{{{problem.answer}\}}\.", problem.target)


def test_targets_vary_in_wording(splits):
    """Eight wordings a kind of question, each drawn about as often as the others."""
    blue = [p for p in splits["train"] if p.question == "<image>what color is the shape?"]
    wordings = Counter(p.target.replace(p.answer, "…") for p in blue)
    assert len(wordings) == 8
    assert min(wordings.values()) > len(blue) / 8 / 2


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("what color is the circle?", "teal", r"The circle is teal, so the answer is \boxed{teal}."),
        ("what is the color of the shape?", "red", r"The shape is red, so the answer is \boxed{red}."),
        (
            "what is the blue shape?",
            "circle",
            r"The blue shape is a circle, so the answer is \boxed{circle}.",
        ),
        ("what shape is present?", "circle", r"The shape is a circle, so the answer is \boxed{circle}."),
    ],
)
def test_worked_answer(question, answer, expected):
    assert worked_answer(question, answer, draw=0.0) == expected


def test_what_was_read_is_where_the_answer_is_first_named(splits):
    """Not the thing that the question names, nor what is boxed after it; also in an answer that names another."""
    colour = next(p for p in splits["test"] if p.question == "<image>what color is the circle?")
    shape = next(p for p in splits["test"] if p.question == "<image>what is the blue shape?")

    def read(problem: Problem, text: str) -> list[str]:
        return [text[start:end] for start, end in problem.reading.spans(text)]

    assert read(colour, r"The circle is teal, so the answer is \boxed{teal}.") == ["teal"]
    assert read(shape, r"The blue shape is a circle. The answer is \boxed{rectangle}.") == ["circle"]
    assert read(colour, "It is coloured, redder than a triangle.") == []
    for problem in (*splits["train"][::50], *splits["test"][::50]):
        [(start, end)] = problem.reading.spans(problem.target)
        assert problem.target[start:end] == problem.answer == problem.target[end:].split("{")[1].split("}")[0]


def test_worked_answer_refuses_a_question_of_another_version():
    with pytest.raises(ValueError, match="how many shapes"):
        worked_answer("how many shapes are there?", "2", draw=0.0)


def test_seed_changes_wording_and_selection_but_no_question(splits):
    other = EasyVqaProblems(seed=1)
    test = other.load("test")
    assert [p.question for p in test] == [p.question for p in splits["test"]]
    assert [p.target for p in test] != [p.target for p in splits["test"]]
    assert pictures(other.load("selection")) != pictures(splits["selection"])


def test_loading_twice_gives_the_same(splits):
    assert EasyVqaProblems().load("train") == splits["train"]


def test_limits_give_nested_subsets(splits):
    small = EasyVqaProblems(test_limit=20, train_limit=7).load("test")
    large = EasyVqaProblems(test_limit=50).load("test")
    assert len(small) == 20 and len(large) == 50
    assert {p.id for p in small} < {p.id for p in large} < {p.id for p in splits["test"]}
    assert len({p.answer for p in large}) > 3  # a cut from the front would not be a sample


def test_majority_answers():
    rows = [("q", "b"), ("q", "a"), ("q", "b"), ("tied", "y"), ("tied", "x")]
    problems = [Problem(id=str(i), question=question, answer=answer) for i, (question, answer) in enumerate(rows)]
    assert majority_answers(problems) == {"q": "b", "tied": "x"}


def test_baseline_is_that_of_the_published_data(splits):
    """By chance a third of 1,257 shape and an eighth of 1,280 colour questions: (419 + 160) / 2,537."""
    baseline = EasyVqaProblems().baseline()
    assert baseline["problems"] == 2_537
    assert baseline["accuracy"] == pytest.approx(0.23, abs=0.01)
    always_circle = sum(p.answer == "circle" for p in splits["test"]) / 2_537
    assert baseline["accuracy"] > always_circle


def test_baseline_is_computed_on_the_problems_that_are_scored():
    source = EasyVqaProblems(test_limit=40)
    usual = majority_answers(EasyVqaProblems().load("train"))
    right = sum(usual[p.question] == p.answer for p in source.load("test"))
    assert source.baseline()["problems"] == 40
    assert source.baseline()["accuracy"] == right / 40


def test_missing_package_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ValueError, match=r'pip install "atrl\[easy-vqa\]"'):
        EasyVqaProblems().load("train")


def test_empty_splits_and_bad_values_are_refused():
    with pytest.raises(ValueError, match=r"data\.selection_fraction=0 leaves no selection split.*raise it"):
        EasyVqaProblems(selection_fraction=0).load("selection")
    with pytest.raises(ValueError, match=r"data\.selection_fraction=1 leaves no train split.*lower it"):
        EasyVqaProblems(selection_fraction=1).load("train")
    with pytest.raises(ValueError, match=r"^data\.selection_fraction must be a number in \[0, 1\], got 1.5"):
        EasyVqaProblems(selection_fraction=1.5)
    with pytest.raises(ValueError, match=r"^data\.test_limit must be 1 or more.*got 0"):
        EasyVqaProblems(test_limit=0)


def test_yaml_holds_the_defaults():
    config = OmegaConf.to_container(OmegaConf.load(CONFIG))
    assert config.pop("_target_") == "atrl.data.easy_vqa.EasyVqaProblems"
    parameters = inspect.signature(EasyVqaProblems).parameters
    assert config == {name: parameter.default for name, parameter in parameters.items()}
    assert isinstance(EasyVqaProblems(**config), ProblemSource)


def test_slips_change_worked_answers_of_the_training_split_alone(splits):
    slipping = EasyVqaProblems(slip_rate=0.3)
    slipped = 0
    for problem, plain in zip(slipping.load("train"), splits["train"], strict=True):
        assert (problem.id, problem.question, problem.answer) == (plain.id, plain.question, plain.answer)
        if problem.target != plain.target:
            slipped += 1
            stated = problem.target.split("boxed{")[1].split("}")[0]
            # The same sentence about another colour or shape.
            assert stated != problem.answer and problem.target == plain.target.replace(problem.answer, stated)
    # Binomial: 0.3 within four standard deviations.
    assert abs(slipped / len(splits["train"]) - 0.3) < 4 * (0.3 * 0.7 / len(splits["train"])) ** 0.5
    for split in ("selection", "test"):
        assert [p.target for p in slipping.load(split)] == [p.target for p in splits[split]]
