"""Recorded answers of real models, with the verdicts that the benchmarks' own code gave, record by record."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from atrl.benchmarks.base import Item, Scored, score_one
from atrl.benchmarks.dynamath import DynaMath
from atrl.benchmarks.figures import MeanOf, Ratio, point_values
from atrl.benchmarks.logicvista import LogicVista
from atrl.benchmarks.mathvision import MathVision
from atrl.benchmarks.mathvista import MathVista
from atrl.benchmarks.metric import BenchmarkMetric
from atrl.benchmarks.mmmu import MMMU
from atrl.data.tables import read_file
from atrl.rewards.math_verify import MathVerifyAnswer
from atrl.types import Problem

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "recorded_outputs"
pytestmark = pytest.mark.skipif(
    not RECORDED.is_dir(), reason="the recorded answers are not beside this checkout: ../shared/data/recorded_outputs"
)


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (RECORDED / name).read_text(encoding="utf-8").splitlines()]


def items_of(rule, name: str) -> dict[str, Item]:
    """The problems in a file, by id."""
    return {item.id: item for item in rule.items(read_file(RECORDED / name, "path", (), name_column="id"))}


def figures(rule, items, verdicts) -> dict[str, float]:
    metric = BenchmarkMetric(rule, items)
    metric.update(verdicts)
    return metric.compute()


@pytest.mark.parametrize(("model", "right", "differ_from_responses"), [("bard", 348, 16), ("random_guess", 179, 0)])
def test_mathvista(model, right, differ_from_responses):
    """From responses alone 98.4 % of the verdicts agree with those that GPT-4's extraction led to."""
    rule = MathVista()
    table = read_file(RECORDED / f"mathvista/output_{model}.json", "path", (), name_column="pid")
    items = rule.items(table)
    found = [score_one(rule, item, None, row.values["extraction"]) for item, row in zip(items, table.rows, strict=True)]
    assert [scored.score == 1 for scored in found] == [row.values["true_false"] for row in table.rows]
    assert sum(scored.score for scored in found) == right

    official = json.loads((RECORDED / f"mathvista/scores_{model}.json").read_text())
    ours = figures(rule, items, zip((item.id for item in items), found, strict=True))
    assert ours["accuracy"] == pytest.approx(right / 1000)
    for group in (
        "question_type",
        "answer_type",
        "language",
        "source",
        "category",
        "task",
        "context",
        "grade",
        "skills",
    ):
        for label, entry in official[group].items():
            assert ours[f"{group}/{label}"] == pytest.approx(entry["correct"] / entry["total"]), (group, label)

    read = [score_one(rule, item, row.values["response"], None) for item, row in zip(items, table.rows, strict=True)]
    differ = sum((a.score == 1) != row.values["true_false"] for a, row in zip(read, table.rows, strict=True))
    assert differ <= differ_from_responses


@pytest.mark.parametrize("model", ["InternLM-XComposer2-VL-CoT", "Random-Chance"])
def test_mathvision(model):
    """Extractions are those of the authors on all 3,040 responses, verdicts on the 304 problems that are here."""
    rule = MathVision()
    items = items_of(rule, "mathvision/testmini.jsonl")
    assert len(items) == 304
    for row in rows(f"mathvision/{model}.jsonl"):
        some = items.get(row["id"], next(iter(items.values())))
        assert (rule.extract(row["response"], some) or "") == row["model_answer"], row["id"]
        if row["id"] in items:
            for response, extraction in ((None, row["model_answer"]), (row["response"], None)):
                assert (score_one(rule, some, response, extraction).score == 1) == row["correct"], row["id"]


@pytest.mark.parametrize(("model", "right", "differ_from_responses"), [("GPT4", 146, 0), ("otter9B", 106, 3)])
def test_logicvista(model, right, differ_from_responses):
    """What differs is "False.", which GPT-4 took for an option's text."""
    rule = LogicVista()
    items = items_of(rule, "logicvista/dataset.json")
    with (RECORDED / f"logicvista/{model}-accuracy-results.csv").open(encoding="utf-8") as file:
        recorded = list(csv.DictReader(file))
    official = [row["match?"] == "1" for row in recorded]
    found = [score_one(rule, items[row["id"]], None, row[f"{model} answer extracted"]) for row in recorded]
    assert [scored.score == 1 for scored in found] == official
    assert sum(official) == right
    read = [score_one(rule, items[row["id"]], row[f"{model} answer raw"], None) for row in recorded]
    assert (
        sum((scored.score == 1) != right for scored, right in zip(read, official, strict=True)) <= differ_from_responses
    )


def test_mmmu():
    """The official random guess is right once, on the two responses in which no choice can be found."""
    rule = MMMU()
    folder = RECORDED / "mmmu"
    parsed = json.loads((folder / "llava1.5_13b/total_val_output.json").read_text())
    golds = items_of(rule, "mmmu/answer_dict_val.json")
    assert sum(score_one(rule, golds[name], None, found).score for name, found in parsed.items()) == 330
    unguessed = right = 0
    for path in sorted((folder / "llava1.5_13b").glob("[A-Z]*.json")):
        table = read_file(path, "path", (), name_column="id")
        for item, row in zip(rule.items(table), table.rows, strict=True):
            scored = score_one(rule, item, row.values["response"], None)
            right, unguessed = right + scored.score, unguessed + scored.extras.get("unguessed", 0)
            if scored.parsed and item.row["question_type"] == "multiple-choice":
                assert scored.prediction == parsed[item.id]
    assert (right, unguessed) == (329, 2)


@pytest.mark.parametrize(("model", "average", "worst"), [("Qwen2-7B", 0.4214, 0.1377), ("llava1.5-7B", 0.1639, 0.0180)])
def test_dynamath(model, average, worst):
    with (RECORDED / f"dynamath/{model}-result.csv").open(encoding="utf-8") as file:
        table = [row for row in csv.DictReader(file) if row["Question ID"].startswith("Q")]
    rule = DynaMath()
    cells = [(row, variant) for row in table for variant in range(1, 11)]
    items = [
        Item(f"{row['Question ID']}/{variant}", "x", {"id": row["Question ID"], "subject": row["Topic"]})
        for row, variant in cells
    ]
    verdicts = [Scored("", "", float(row[f"Variant {variant}"] == "correct")) for row, variant in cells]
    ours = figures(rule, items, zip((item.id for item in items), verdicts, strict=True))
    assert len(table) == 501
    assert ours["average"] == pytest.approx(average, abs=5e-5)
    assert ours["worst_case"] == pytest.approx(worst, abs=5e-5)
    assert ours["robustness"] == pytest.approx(ours["worst_case"] / ours["average"])


def test_vsibench():
    """The leaderboard's averages are unweighted means of the eight tasks, but for the row of chance."""
    table = json.loads((RECORDED / "vsibench/published_leaderboard_per_task.json").read_text())
    one = np.ones(1)
    agree = 0
    for row in table:
        tasks = [Ratio(name, one * value, one) for name, value in row["tasks"].items()]
        overall = point_values([*tasks, MeanOf("overall", tuple(row["tasks"]))], units=1)["overall"]
        agree += abs(overall - row["avg"]) <= 0.051
    assert (agree, len(table)) == (22, 23)


def test_geometry_answers_by_math_verify_itself():
    name = "r1v_reward/geoqa_test_qwen2vl_7b_instruct_legacy.json"
    recorded = json.loads((RECORDED / name).read_text(encoding="utf-8"))["results"]
    problems = [Problem(id=str(i), question="", answer=row["ground_truth"]) for i, row in enumerate(recorded)]
    part = MathVerifyAnswer()
    try:
        verdicts = part.score([row["model_output"] for row in recorded], problems)
    finally:
        part.close()
    assert [verdict.value == 1 for verdict in verdicts] == [row["is_correct"] for row in recorded]
    assert sum(verdict.value for verdict in verdicts) == 231
