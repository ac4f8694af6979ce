"""Two results, problem by problem."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from atrl.evaluation.compare import compare, mcnemar, paired_interval, stamp_differences

STAMP = {"judge": "rules", "data_sha256": "x", "decoding": None}


def finished(folder: Path, verdicts: dict[str, bool | None], **stamp) -> Path:
    folder.mkdir()
    right = [verdict for verdict in verdicts.values() if verdict is not None]
    result = {
        "benchmark": stamp.pop("benchmark", "mathvista"),
        "headline": {"name": "accuracy", "value": 100 * sum(right) / max(1, len(right))},
        "stamp": STAMP | stamp,
    }
    (folder / "evaluation.json").write_text(json.dumps(result))
    rows = [{"id": n, "correct": v, "score": None if v is None else float(v)} for n, v in verdicts.items()]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(tmp_path: Path, first: Path, second: Path) -> dict:
    return compare(OmegaConf.create({"compare": [str(first), str(second)], "seed": 0}), tmp_path)


def test_a_comparison_by_hand(tmp_path, capsys):
    first = finished(tmp_path / "a", {"1": True, "2": True, "3": False, "4": False, "5": True})
    second = finished(tmp_path / "b", {"1": True, "2": False, "3": True, "4": True, "6": True})
    found = run(tmp_path, first, second)
    assert (found["problems"], found["only_in"]) == (4, [1, 1])
    assert found["accuracy"] == [50.0, 75.0]
    assert found["difference"] == 25.0
    assert (found["gained"], found["lost"]) == (["3", "4"], ["2"])
    assert found["mcnemar"] == {"gained": 2, "lost": 1, "p": 1.0}  # 2 · (1 + 3) / 8
    assert found["stamp_differences"] == {}
    assert json.loads((tmp_path / "comparison.json").read_text()) == found
    shown = capsys.readouterr().out
    assert "difference +25.00" in shown
    assert "gained: 3, 4" in shown
    assert "problems in one result alone, left out: 1 | 1" in shown


def test_results_that_were_not_measured_alike_say_so_first(tmp_path, capsys):
    first = finished(tmp_path / "a", {"1": True, "2": False})
    second = finished(tmp_path / "b", {"1": True, "2": True}, judge="gpt-4o")
    found = run(tmp_path, first, second)
    assert found["stamp_differences"] == {"judge": ["rules", "gpt-4o"]}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("NOT MEASURED ALIKE")
    assert lines[1] == '  judge: "rules" | "gpt-4o"'
    assert lines[2].endswith("(not measured alike)")


def test_an_answer_without_a_verdict_is_in_neither(tmp_path):
    first = finished(tmp_path / "a", {"1": True, "2": None})
    second = finished(tmp_path / "b", {"1": True, "2": True})
    assert run(tmp_path, first, second)["problems"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "mmmu"}, "is of mathvista and .* of mmmu"),
        ({"verdicts": {"9": True}}, "have no problem in common"),
    ],
)
def test_results_that_cant_pair_are_refused(tmp_path, change, message):
    first = finished(tmp_path / "a", {"1": True})
    second = finished(tmp_path / "b", change.pop("verdicts", {"1": True}), **change)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, first, second)


def test_what_is_no_result_is_refused(tmp_path):
    good = finished(tmp_path / "a", {"1": True})
    with pytest.raises(ValueError, match=r"nowhere has no evaluation\.json"):
        run(tmp_path, good, tmp_path / "nowhere")
    broken = finished(tmp_path / "b", {"1": True})
    (broken / "records.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"can't be read .*: evaluate again"):
        run(tmp_path, good, broken)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (0, 6, 2 / 64), (8, 2, 2 * (1 + 10 + 45) / 1024), (5, 5, 1.0)],
)
def test_mcnemar_by_hand(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p)


def test_the_interval_of_a_difference_agrees_with_the_normal_one():
    differences = np.array([1.0] * 120 + [-1.0] * 60 + [0.0] * 820)
    low, high = paired_interval(differences, seed=1)
    half = 1.96 * differences.std() / np.sqrt(1000)
    assert low == pytest.approx(0.06 - half, abs=0.002)
    assert high == pytest.approx(0.06 + half, abs=0.002)


def test_stamps_differ_in_what_one_of_them_lacks():
    assert stamp_differences({"a": 1, "b": None}, {"a": 1, "c": 2}) == {"c": [None, 2]}
