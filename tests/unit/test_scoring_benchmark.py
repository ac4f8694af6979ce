"""What `benchmarks/scoring.py` scores."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "scoring.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("scoring_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_answers_are_repeated_whole_and_as_further_samples(benchmark) -> None:
    answers = benchmark.repeated([("a", "1"), ("b", "2"), ("a", "3")], 4)
    assert [(answer.id, answer.sample, answer.response) for answer in answers] == [
        *(("a", 0, "1"), ("b", 0, "2"), ("a", 1, "3")),
        *(("a", 2, "1"), ("b", 1, "2"), ("a", 3, "3")),
    ]


def test_every_answer_is_scored(benchmark, tmp_path) -> None:
    """Three of four are right: a value, a letter, and an option's value. An unknown problem's answer is left out."""
    folder = tmp_path / "mathvision"
    folder.mkdir()
    rows = [{"id": "1", "answer": "5", "options": []}, {"id": "2", "answer": "B", "options": ["1", "2.5"]}]
    answers = [("1", "so 2+3 is 5"), ("1", "4"), ("2", "b"), ("2", "2.5"), ("3", "5")]
    (folder / "testmini.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [json.dumps({"id": name, "response": text}) + "\n" for name, text in answers]
    (folder / "some-model.jsonl").write_text("".join(lines))
    found = benchmark.measure("mathvision", tmp_path, count=8, workers=1)
    assert (found["answers"], found["different"], found["right"], found["unparseable"]) == (8, 4, 6, 0)
