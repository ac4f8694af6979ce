"""Sweeps as a user runs them: a process a job, what a second start does, and several ranks."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import REPOSITORY

SMALL = (
    *("mode=fast", "trainer.max_steps=2", "trainer.evaluate_samples=4", "rollout.prompts_per_step=2"),
    *("rollout.group_size=2", "trainer.threads=1", "hydra.sweep.dir=sweep"),
)


def sweep(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, REPOSITORY / "train.py", "-m", *SMALL, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A sweep of two jobs, the first of which can't be run."""
    folder = tmp_path_factory.mktemp("work")
    return folder, sweep("seed=-1,3", folder=folder)


def test_a_job_that_fails_does_not_take_the_others_down(begun):
    folder, done = begun
    assert done.returncode == 2 and "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    said = "seed must be in [0, 4294967295], got -1 (exit code 2, see sweep/0/job.log)"
    assert errors[0].startswith("error: job 0 (") and errors[0].endswith(said)
    assert errors[1:] == [
        "error: 1 of the sweep's jobs failed; the same command with hydra.sweep.dir=sweep runs these again:",
        f"error:   job 0   seed=-1  {said}",
    ]
    summary = json.loads((folder / "sweep" / "1" / "summary.json").read_text())
    assert (summary["seed"], summary["steps"]) == (3, 2)
    accuracy = summary["accuracy"]
    words = f"job 1: seed=3: accuracy {accuracy['before']:.3f} → {accuracy['after']:.3f} in "
    assert words in done.stdout


def test_each_job_is_a_run_of_its_own(begun):
    folder, _ = begun
    job = json.loads((folder / "sweep" / "1" / "job.json").read_text())
    assert job["status"] == "finished" and job["exit_code"] == 0
    command = (folder / "sweep" / "1" / "command.txt").read_text()
    assert " -m " not in command and "seed=3" in command and "hydra.run.dir=" in command
    assert "sampled accuracy on 4 held-out problems" in (folder / "sweep" / "1" / "job.log").read_text()


def test_the_sweep_leaves_its_report(begun):
    folder, done = begun
    assert "sweep report: sweep/sweep.html" in done.stdout
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", (folder / "sweep" / "sweep.html").read_text()))
    assert "1 finished run in 1 row · 1 missing" in text and "failed: seed must be in" in text


def test_a_second_start_does_what_is_missing(begun, tmp_path):
    """Seed 4 in the place of the one that failed; the other's files are not touched."""
    folder, _ = begun
    before = (folder / "sweep" / "1" / "summary.json").stat().st_mtime_ns
    done = sweep("seed=4,3", folder=folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r"job 0: seed=4: accuracy .* min\n", done.stdout)
    assert re.search(r"job 1: seed=3: accuracy .*, finished before\n", done.stdout)
    assert (folder / "sweep" / "1" / "summary.json").stat().st_mtime_ns == before
    assert "got -1" in (folder / "sweep" / "0" / "unfinished" / "1" / "job.log").read_text()
    other = sweep("seed=4,3", "trainer.max_steps=3", folder=folder)
    assert other.returncode == 2
    assert (
        other.stderr.count("holds a run with other settings: trainer.max_steps was 2 and is 3.") == 4
    )  # and the table
    assert json.loads((folder / "sweep" / "1" / "summary.json").read_text())["steps"] == 2
    # Hydra's own record is of the start that was refused by now; the run's is not.
    assert "trainer.max_steps=3" in (folder / "sweep" / "1" / ".hydra" / "overrides.yaml").read_text()
    composed = json.loads((folder / "sweep" / "1" / "composed.json").read_text())
    assert composed["choices"]["mode"] == "fast" and composed["interpolations"]["logger.csv.resume"] == "${resume}"
    assert "trainer.max_steps=2" in composed["overrides"] and "trainer.max_steps=3" not in composed["overrides"]


@pytest.mark.slow
def test_several_ranks_are_started_by_torchrun(begun, tmp_path):
    """And train as one process does."""
    ranks = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
    done = sweep("seed=3", *ranks, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    job = json.loads((tmp_path / "sweep" / "0" / "job.json").read_text())
    assert "torch.distributed.run --standalone --nproc-per-node=2" in job["command"]
    assert (tmp_path / "sweep" / "0" / "train_process_1.log").is_file()
    summaries = [
        json.loads((path / "summary.json").read_text()) for path in (tmp_path / "sweep/0", begun[0] / "sweep/1")
    ]
    assert summaries[0]["rewards"] == summaries[1]["rewards"]
    assert summaries[0]["tokens"] == summaries[1]["tokens"]


def test_several_nodes_are_refused(tmp_path):
    done = sweep("seed=0", "trainer.num_nodes=2", folder=tmp_path)
    assert done.returncode == 2 and "trainer.num_nodes must be 1 in a sweep (-m), got 2" in done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_the_job_and_the_next_start_goes_on_with_it(tmp_path):
    """No checkpoint is asked for: the job saves its last step because it is told to end."""
    arguments = ("seed=0", "trainer.max_steps=40", "resume=auto")
    command = [sys.executable, REPOSITORY / "train.py", "-m", *SMALL, *arguments]
    job_folder = tmp_path / "sweep" / "0"
    checkpoints, steps = job_folder / "checkpoints", job_folder / "groups.jsonl"
    started = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    end = time.monotonic() + 300
    while not (steps.is_file() and steps.read_text()):
        assert started.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    os.kill(started.pid, signal.SIGINT)
    out, error = started.communicate(timeout=120)
    assert started.returncode == 130 and "error: interrupted by Ctrl-C" in error
    assert "stopped; the same command with hydra.sweep.dir=sweep does what is missing" in out
    job = json.loads((tmp_path / "sweep" / "0" / "job.json").read_text())
    assert job["status"] == "stopped" and not (tmp_path / "sweep" / "0" / "summary.json").exists()
    done = int(json.loads((checkpoints / "last" / "state.json").read_text())["step"])
    shorter = ("trainer.max_steps=" + str(done + 1), "resume_allow=[trainer.max_steps]")
    again = sweep(*arguments, *shorter, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    rows = [json.loads(line) for line in (tmp_path / "sweep" / "0" / "rollouts.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [step for step in range(1, done + 2) for _ in range(4)]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("joblib") is None, reason="the extra sweeps is not installed")
def test_joblib_runs_jobs_beside_each_other(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = sweep("seed=0,-1,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert sorted(re.findall(r"job (\d): seed=\d: accuracy", done.stdout)) == ["0", "2"]
    assert "error:   job 1   seed=-1  seed must be in" in done.stderr
    jobs = [json.loads((tmp_path / "sweep" / n / "job.json").read_text())["status"] for n in "012"]
    assert jobs == ["finished", "failed", "finished"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="the extra sweeps is not installed")
def test_optuna_goes_by_the_accuracy_on_the_selection_split(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    options = ("hydra/sweeper=learning_rate", "hydra.sweeper.n_trials=2", "data.selection_size=8")
    refused = sweep(*options, folder=tmp_path)
    assert refused.returncode == 2 and "set trainer.evaluate_split=selection" in refused.stderr
    done = sweep(*options, "trainer.evaluate_split=selection", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = (tmp_path / "sweep" / "optimization_results.yaml").read_text()
    accuracies = [
        json.loads((tmp_path / "sweep" / number / "summary.json").read_text())["accuracy"]["after"] for number in "01"
    ]
    assert f"best_value: {max(accuracies)}" in found
