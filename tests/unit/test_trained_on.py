"""A run is scored on problems of its own, or on those that somebody named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from atrl.composed import Composed
from atrl.evaluation.trained_on import check_problems
from tests.unit.refusals import refusal

REPOSITORY = Path(__file__).parents[2]
GEOMETRY = {"_target_": "atrl.data.geometry.GeometryProblems", "train_size": 10}
OWN = {"_target_": "atrl.data.tabular.TabularProblems", "path": "my problems.jsonl"}
OVERRIDES = ["data=jsonl", "data.path=my problems.jsonl", "reward=math", "credit=vppo", "seed=3"]


def run_of(folder: Path, data: dict, overrides: list[str]) -> str:
    """What a run leaves of its settings, as far as they matter here."""
    choices = {"data": "jsonl" if data is OWN else "geometry", "reward": "math", "rollout": "vllm"}
    (folder / ".hydra").mkdir(parents=True)
    (folder / "model").mkdir()
    OmegaConf.save({"data": data}, folder / "config.yaml")
    composed = {"hydra": {"overrides": {"task": overrides}, "runtime": {"choices": choices}}}
    OmegaConf.save(composed, folder / ".hydra" / "hydra.yaml")
    OmegaConf.save(overrides, folder / ".hydra" / "overrides.yaml")
    return str(folder)


@pytest.mark.parametrize("name", ["", "/model"])
def test_a_run_is_not_scored_on_the_demos_problems_unasked(tmp_path, name):
    checkpoint = run_of(tmp_path / "run", OWN, OVERRIDES) + name
    said = refusal(lambda: check_problems(checkpoint, OmegaConf.create(GEOMETRY), ["samples=4", "reward=math"]))
    assert said == (
        f"{checkpoint} was trained on data=jsonl: say which problems it is to be scored on, its own by data=jsonl "
        "'data.path=my problems.jsonl', or those of the demo by data=geometry"
    )


def test_a_command_that_was_refused_is_not_the_runs(tmp_path):
    """Hydra's own record is of the last one that was given for the folder."""
    checkpoint = run_of(tmp_path / "run", OWN, ["data=geometry"])
    Composed(OVERRIDES, {"data": "jsonl", "reward": "math", "rollout": "vllm"}).write(tmp_path / "run")
    with pytest.raises(ValueError, match=r"was trained on data=jsonl.*'data\.path=my problems\.jsonl'"):
        check_problems(checkpoint, OmegaConf.create(GEOMETRY), [])


def test_another_file_is_other_problems(tmp_path):
    checkpoint = run_of(tmp_path / "run", OWN, OVERRIDES)
    check_problems(checkpoint, OmegaConf.create(OWN), [])
    with pytest.raises(ValueError, match="was trained on data=jsonl"):
        check_problems(checkpoint, OmegaConf.create(OWN | {"path": "others.jsonl"}), [])


@pytest.mark.parametrize("named", ["data=geometry", "data.seed=3", "++data.kinds=[read]"])
def test_problems_that_somebody_named_are_taken(tmp_path, named):
    check_problems(run_of(tmp_path / "run", OWN, OVERRIDES), OmegaConf.create(GEOMETRY), [named])


def test_what_is_not_known_is_not_refused(tmp_path):
    """The same source with other numbers, a hub name, and a model's folder in no run."""
    same = run_of(tmp_path / "run", GEOMETRY | {"train_size": 99}, [])
    (tmp_path / "alone" / "model").mkdir(parents=True)
    for checkpoint in (same, "tiny", "somebody/model", str(tmp_path / "alone" / "model")):
        check_problems(checkpoint, OmegaConf.create(GEOMETRY), ["dataset=no_such_key"])


def test_the_command_asks(tmp_path):
    run_of(tmp_path / "run", OWN, OVERRIDES)
    command = [sys.executable, str(REPOSITORY / "evaluate.py"), "checkpoint=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip().startswith("error: run was trained on data=jsonl: say which problems")
