"""Answers are hostile input: whatever they are, every benchmark gives a verdict within its limits."""

from __future__ import annotations

import functools
import math

import pytest

from atrl.benchmarks.base import Answer, Benchmark, Item, score_one
from atrl.benchmarks.dynamath import DynaMath
from atrl.benchmarks.hallusionbench import HallusionBench
from atrl.benchmarks.latex_value import latex_value
from atrl.benchmarks.logicvista import LogicVista
from atrl.benchmarks.mathverse import MathVerse
from atrl.benchmarks.mathvision import MathVision
from atrl.benchmarks.mathvista import MathVista
from atrl.benchmarks.mmmu import MMMU
from atrl.benchmarks.mmmu_pro import MMMUPro
from atrl.benchmarks.mmstar import MMStar
from atrl.benchmarks.mmvet import MMVet
from atrl.benchmarks.scoring import CPU_SECONDS, MEMORY_BYTES, RuleScorer
from atrl.benchmarks.vsibench import VsiBench
from atrl.benchmarks.wemath import WeMath
from atrl.rewards.workers import KillableWorkers
from tests.unit.hostile import GIANTS, hostile_strings

CHOICES = {"question_type": "multi_choice", "answer_type": "text", "choices": ["2cm", "No", r"\frac{1}{2}"]}
FIGURE = {"category": "VS", "subcategory": "s", "set_id": "0", "figure_id": "0", "question_id": "0"}
CASES: list[tuple[Benchmark, Item]] = [
    (MathVista(), Item("1", "No", CHOICES)),
    (MathVista(), Item("2", "3", {"question_type": "free_form", "answer_type": "integer"})),
    (MathVista(), Item("3", "1.5", {"question_type": "free_form", "answer_type": "float", "precision": 1})),
    (MathVista(), Item("4", "[1]", {"question_type": "free_form", "answer_type": "list"})),
    (MathVision(), Item("5", "B", {"options": ["1", r"$\frac{1}{2}$"]})),
    (MathVision(), Item("6", "(1,2)", {})),
    (WeMath(), Item("7", "A", {})),
    (LogicVista(), Item("8", "b, d", {})),
    (DynaMath(), Item("9", "3.0", {"answer_type": "float"})),
    (DynaMath(), Item("10", "A", {"answer_type": "multiple choice"})),
    (DynaMath(), Item("11", "even", {"answer_type": "text"})),
    (MMMU(), Item("12", "A", {"answer": "A", "index2ans": {"A": "red", "B": "blue"}})),
    (MMMU(), Item("13", "5", {"answer": "['5', 'five']", "question_type": "open"})),
    (MMMUPro(), Item("14", "A", {"answer": "A", "options": "['red', 'blue']"})),
    (MMStar(), Item("15", "A", {})),
    (HallusionBench(), Item("16", "yes", FIGURE)),
    (VsiBench(), Item("17", "4", {"question_type": "object_counting"})),
    (VsiBench(), Item("18", "B", {"question_type": "route_planning", "options": ["A. x", "B. y"]})),
    (MMVet(), Item("19", "a<AND>b<OR>c", {})),
    (MathVerse(), Item("20", "0.5", {"question_type": "free-form"})),
    (MathVerse(), Item("21", "B", {"question_type": "multi-choice"})),
]


@pytest.fixture(scope="module")
def pool():
    workers = KillableWorkers(
        workers=2, cpu_seconds=CPU_SECONDS, memory_bytes=MEMORY_BYTES, prepare=functools.partial(latex_value, "1")
    )
    yield workers
    workers.close()


def assert_scored(pool: KillableWorkers, texts: list[str]) -> None:
    """The texts dealt out to the rules, each as a response and as an extraction."""
    shares = {place: texts[place :: len(CASES)] for place in range(len(CASES))}
    for place, (rule, item) in enumerate(CASES):
        scorer = RuleScorer(rule, workers=2)
        scorer._workers, own = pool, scorer._workers  # one pool for all: starting many would take longer than scoring
        own.close()
        answers = [Answer(item.id, response=text) for text in shares[place]]
        answers += [Answer(item.id, extraction=text) for text in shares[place]]
        verdicts = scorer.score([(item, answer) for answer in answers])
        assert len(verdicts) == len(answers)
        for scored in verdicts:
            assert scored is not None
            assert 0 <= scored.score <= 1
            assert math.isfinite(scored.score)


def test_two_thousand_hostile_answers(pool):
    assert_scored(pool, list(hostile_strings(2000)))


@pytest.mark.slow
def test_fifty_thousand_hostile_answers(pool):
    assert_scored(pool, list(hostile_strings(50_000, seed=1)))


def test_megabytes_of_answer(pool):
    for rule, item in CASES:
        calls = [(rule, item, text, None) for text in (*GIANTS, "x")]
        verdicts = pool.run(score_one, calls)
        assert len(verdicts) == len(calls)
        assert verdicts[-1] is not None  # whatever became of the giants, the next answer is scored
        assert all(scored is None or 0 <= scored.score <= 1 for scored in verdicts)


def test_what_breaks_a_limit_is_unparseable_and_its_neighbours_are_scored():
    rule, item = MathVision(), Item("1", "0.5", {})
    scorer = RuleScorer(rule, workers=1)
    try:
        answers = [r"\boxed{\frac{1}{2}}", r"\boxed{7^{9^{9}}}", r"\boxed{0.25+0.25}"]
        scored = scorer.score([(item, Answer("1", response=text)) for text in answers])
    finally:
        scorer.close()
    assert [one.score for one in scored] == [1.0, 0.0, 1.0]
    assert scored[0].parsed and scored[2].parsed


def test_python_is_never_run(pool, tmp_path):
    target = tmp_path / "made"
    code = f"__import__('pathlib').Path({str(target)!r}).touch()"
    assert_scored(pool, [code, f"\\boxed{{{code}}}", f"['{code}']", f"[{code}]"] * len(CASES))
    assert not target.exists()
