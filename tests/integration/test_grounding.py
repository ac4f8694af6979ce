"""What a training run measures without the right pictures: what it writes, logs, and costs the run (nothing)."""

from __future__ import annotations

import csv
import json

import pytest

from tests.integration.test_training import moved


def logged(folder) -> list[dict[str, float]]:
    """The rows of `metrics.csv` that hold the three accuracies."""
    (path,) = folder.rglob("metrics.csv")
    with path.open(newline="") as file:
        rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    return [row for row in rows if "eval/picture_true" in row]


def test_a_policy_that_reads_is_lost_without_its_pictures(train) -> None:
    """The model that ships, after two steps so small that they are none."""
    run = train(
        "rollout=transformers", "trainer.evaluate_samples=64", "trainer.grounding_samples=64",
        "optimizer.learning_rate=1e-9",
    )  # fmt: skip
    found = json.loads((run.folder / "grounding.json").read_text())
    assert found.keys() == {"before", "after", "left_out", "same_answer"}
    assert (found["left_out"], found["same_answer"]) == (0, 0)
    for moment, score in (("before", run.trained.before), ("after", run.trained.after)):
        assert {entry["samples"] for entry in found[moment].values()} == {64}
        # All that are evaluated have a partner, so the two measure the same.
        assert found[moment]["true"]["accuracy"] == score.accuracy
        assert found[moment]["true"]["ci95"] == list(score.ci95)
        # Measured: 0.41 of 64 sampled answers with the picture, 0.12 blanked, 0.08 with another's.
        for name in ("blank", "swapped"):
            assert found[moment][name]["accuracy"] < found[moment]["true"]["accuracy"] - 0.15
    assert run.trained.grounding["blank"].accuracy == found["after"]["blank"]["accuracy"]
    before, after = logged(run.folder)
    assert (before["step"], after["step"]) == (0, 2)
    for row, moment in ((before, "before"), (after, "after")):
        for name, entry in found[moment].items():
            assert row[f"eval/picture_{name}"] == pytest.approx(entry["accuracy"])


def test_measuring_it_changes_nothing_else_and_zero_leaves_it_out(train) -> None:
    """Nor what is measured on the way: not the step after it."""
    options = ("rollout=transformers", "optimizer.learning_rate=1e-3", "trainer.evaluate_every=1")
    with_it = train(*options, "trainer.grounding_samples=6", name="with")
    without = train(*options, "trainer.grounding_samples=0", name="without")
    found = json.loads((with_it.folder / "grounding.json").read_text())
    assert found["after"]["true"]["samples"] == 6
    first = [rewards[0].status.value == "right" for rewards in with_it.trained.after.rewards[:6]]
    assert found["after"]["true"]["accuracy"] == pytest.approx(sum(first) / 6)
    rows = logged(with_it.folder)
    assert [row["step"] for row in rows] == [0, 1, 2]  # before, after the first step, after the second and last
    for row, moment in ((rows[0], "before"), (rows[-1], "after")):
        for name, entry in found[moment].items():
            assert row[f"eval/picture_{name}"] == pytest.approx(entry["accuracy"])
    assert without.trained.grounding is None
    assert not (without.folder / "grounding.json").exists() and logged(without.folder) == []
    assert moved(with_it.trained.module.policy.state_dict(), without.trained.module.policy.state_dict()) == set()
    assert (with_it.folder / "rollouts.jsonl").read_text() == (without.folder / "rollouts.jsonl").read_text()


def test_without_an_evaluation_there_is_nothing_to_compare_with(train) -> None:
    run = train("rollout=transformers", "trainer.evaluate_samples=0", "trainer.max_steps=1")
    assert run.trained.grounding is None and not (run.folder / "grounding.json").exists()
