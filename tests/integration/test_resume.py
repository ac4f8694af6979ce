"""Runs that are killed and go on, as a user has them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.conftest import REPOSITORY

OPTIONS = (
    *("rollout=transformers", "logger=csv", "seed=3", "resume=auto", "trainer.max_steps=5", "data.train_size=10"),
    *("trainer.checkpoint_every=2", "trainer.evaluate_samples=8", "trainer.evaluate_every=2"),
    *("trainer.grounding_samples=4", "rollout.prompts_per_step=4", "rollout.group_size=4", "optimizer.warmup_steps=1"),
)
"""Ten problems, four a step: the third step begins within the first pass and ends in the second."""


def start(folder: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, REPOSITORY / "train.py", *OPTIONS, f"hydra.run.dir={folder}", *more],
        cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(folder: Path, *more: str) -> str:
    process = start(folder, *more)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def killed_after_the_checkpoint(folder: Path, step: int, *more: str) -> None:
    """Kill −9, all processes of the run, as soon as the checkpoint of `step` is there."""
    process = start(folder, *more)
    deadline = time.monotonic() + 240
    while not (folder / "checkpoints" / f"step_{step:06d}").is_dir():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def metrics_of(folder: Path) -> list[dict[str, str]]:
    """All but what the clock and the machine say."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = ("time/", "memory/", "rollout/tokens_per_second")
    return [{key: value for key, value in row.items() if value and not key.startswith(measured)} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("resume") / "whole"
    finish(folder)
    return folder


@pytest.mark.parametrize("step", [2, 4])
def test_a_killed_run_goes_on_to_the_same_bits(whole: Path, tmp_path: Path, step: int) -> None:
    folder = tmp_path / "killed"
    killed_after_the_checkpoint(folder, step)
    finish(folder)
    for name in ("model/model.safetensors", "rollouts.jsonl", "samples.jsonl", "grounding.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics_of(folder) == metrics_of(whole)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, folder)]
    for key in ("accuracy", "steps", "tokens", "rewards", "rollout"):
        assert summaries[0][key] == summaries[1][key], key
    tensors = [load_file(run / "checkpoints" / "last" / "rank_00000.safetensors") for run in (whole, folder)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())


def test_nothing_left_to_do_is_said_and_another_run_refused(whole: Path) -> None:
    assert "nothing is left to do" in finish(whole) and "step 5 of 5" in finish(whole)
    process = start(whole, "optimizer.learning_rate=1e-3")
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0 and "Traceback" not in errors
    assert "optimizer.learning_rate was 0.0002 and is 0.001" in errors
    assert (whole / "model" / "model.safetensors").is_file() and len(metrics_of(whole)) > 5


def test_divided_among_two_ranks_killed_and_finished_by_one(whole: Path, tmp_path: Path) -> None:
    """The same responses; what was learned differs by rounding."""
    folder = tmp_path / "moved"
    killed_after_the_checkpoint(
        folder, 2, "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true",
        "trainer.checkpoint_every=2", "trainer.evaluate_samples=8", "trainer.grounding_samples=4",
    )  # fmt: skip
    assert json.loads((folder / "checkpoints" / "last" / "state.json").read_text())["ranks"] == 2
    finish(folder)
    start_weights, expected, got = (
        load_file(path / "model.safetensors")
        for path in (REPOSITORY / "src" / "atrl" / "models" / "tiny", whole / "model", folder / "model")
    )
    difference = sum(float((expected[name] - got[name]).square().sum()) for name in expected) ** 0.5
    moved = sum(float((expected[name] - start_weights[name]).square().sum()) for name in expected) ** 0.5
    assert moved > 0 and difference / moved < 1e-3
    rows = [(run / "rollouts.jsonl").read_text().splitlines() for run in (whole, folder)]
    assert [json.loads(row)["response"] for row in rows[0]] == [json.loads(row)["response"] for row in rows[1]]
