"""Runs whose sampler hangs, crashes or is killed: they end, say why, and go on from their last finished step."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Callback
from safetensors.torch import load_file

from tests.integration.conftest import REPOSITORY, needs_vllm

LIMIT_S = 12
SAMPLERS = "tests.integration.broken_samplers"
SMALL = (
    "logger=csv",
    "resume=auto",
    "data.train_size=64",
    "rollout.prompts_per_step=2",
    "rollout.group_size=2",
    "rollout.max_response_tokens=8",
    "trainer.max_steps=4",
    "trainer.evaluate_samples=0",
    "optimizer.warmup_steps=1",
)
BREAKING = (
    "rollout=transformers",
    f"rollout.timeout_s={LIMIT_S}",
    f"rollout.sampler._target_={SAMPLERS}.Breaking",
    "~rollout.sampler.max_batch_sequences",
)


def run_train(folder: Path, *overrides: str, broken: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, REPOSITORY / "train.py", f"hydra.run.dir={folder}", *SMALL, *overrides]
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ATRL_BREAK": broken}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


class KeepCheckpoints(Callback):
    """A copy of every step's regular checkpoint, which the next one replaces."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if pl_module.steps_done:
            shutil.copytree(self._folder / "checkpoints" / "last", self._folder / f"after_{pl_module.steps_done}")


@pytest.fixture(scope="module")
def regular(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint of each step of an unbroken run, and what that run leaves."""
    folder = tmp_path_factory.mktemp("regular")
    done = run_train(folder, *BREAKING)
    assert done.returncode == 0, done.stderr

    from atrl import pipeline, stages
    from tests.integration.conftest import compose_config

    config = compose_config(folder, *SMALL, "rollout=transformers", "trainer.checkpoint_every=1")
    (folder / "by_step").mkdir()
    parts = pipeline.instantiate_parts(config, folder / "by_step")
    pipeline.prepare_process(parts)
    data = pipeline.load_data(parts)
    loaded = parts.model.load(folder / "initial_model")
    stages.reinforce(parts, data, loaded, watchers=[KeepCheckpoints(folder / "by_step")])
    return folder


def assert_same(one: Path, other: Path) -> None:
    """Checkpoints that hold the same, bit for bit, but for the clock's times, the config and what it names."""
    states = [json.loads((folder / "state.json").read_text()) for folder in (one, other)]
    for state in states:
        for key in ("seconds", "phases", "config", "data", "sources"):
            state.pop(key, None)
    assert states[0] == states[1]
    tensors = [load_file(folder / "rank_00000.safetensors") for folder in (one, other)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][name]) or name.startswith("random/"), name


def goes_on_to_the_same_model(folder: Path, regular: Path) -> None:
    done = run_train(folder, *BREAKING)
    assert done.returncode == 0, done.stderr
    models = [load_file(run / "model" / "model.safetensors") for run in (folder, regular)]
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


@pytest.mark.parametrize(
    ("phase", "how", "code", "cause"),
    [
        # The sampler is given weights once before the first step, so its third sync is that of step 2.
        ("generate", "hang_without_the_lock", 75, "generating 2 responses to each of 2 prompts"),
        pytest.param(
            *("update_weights", "hang_without_the_lock", 75, "taking over the weights of step 2"),
            marks=pytest.mark.slow,
        ),
        pytest.param("generate", "crash", 1, "the run broke off;", marks=pytest.mark.slow),
        ("update_weights", "crash", 1, "the run broke off;"),
    ],
)
def test_the_run_ends_with_its_cause_and_goes_on_from_its_last_finished_step(
    tmp_path: Path, regular: Path, phase: str, how: str, code: int, cause: str
) -> None:
    done = run_train(tmp_path, *BREAKING, broken=f"{phase}:{how}")
    assert done.returncode == code, done.stderr
    (line,) = [line for line in (tmp_path / "train.log").read_text().splitlines() if cause in line]
    assert f"{tmp_path / 'checkpoints' / 'step_000002'} is saved" in line
    if phase == "generate":
        assert_same(tmp_path / "checkpoints" / "last", regular / "by_step" / "after_2")
    if code == 75:
        assert f"did not return in {LIMIT_S} s" in line and "rollout.timeout_s" in line
        if phase == "generate":
            assert re.search(r"the first is problem \S+\)", line)
        assert line.split(" - ", 2)[-1] in done.stdout + done.stderr
        hung = (tmp_path / "hung.txt").read_text()
        assert hung.startswith(f"rollout=transformers: {cause}") and "in hang_without_the_lock" in hung
    else:
        assert "the run breaks off: RuntimeError: the engine died" in (tmp_path / "train.log").read_text()
        assert "the engine died" in done.stderr and not (tmp_path / "hung.txt").exists()
    goes_on_to_the_same_model(tmp_path, regular)
    if phase == "generate":  # what the step logged whose sync broke is missing
        assert (tmp_path / "rollouts.jsonl").read_text() == (regular / "rollouts.jsonl").read_text()


@pytest.mark.parametrize(
    ("how", "code", "cause"),
    [("hang_with_the_lock", 1, "Timeout ("), ("segmentation_fault", -signal.SIGSEGV, "Segmentation fault")],
)
def test_where_no_python_code_can_run_the_cause_is_still_said(
    tmp_path: Path, regular: Path, how: str, code: int, cause: str
) -> None:
    """What is left is the last regular checkpoint."""
    done = run_train(tmp_path, *BREAKING, "trainer.checkpoint_every=2", broken=f"generate:{how}")
    assert done.returncode == code
    assert cause in done.stderr and f"in {how}" in done.stderr
    assert_same(tmp_path / "checkpoints" / "last", regular / "by_step" / "after_2")


@needs_vllm
def test_a_killed_process_of_a_shared_engine_ends_the_run(tmp_path: Path) -> None:
    done = run_train(
        tmp_path, "rollout=vllm", "trainer.devices=2", "rollout.sampler.tensor_parallel_size=2",
        "rollout.sampler.cpu_cache_gib=0.1", f"rollout.sampler._target_={SAMPLERS}.KilledVllm", "rollout.timeout_s=60",
    )  # fmt: skip
    assert done.returncode != 0
    log = (tmp_path / "train.log").read_text()
    assert "the run breaks off: " in log and "step_000002 is saved" in log, done.stderr
    state = json.loads((tmp_path / "checkpoints" / "last" / "state.json").read_text())
    assert (state["step"], state["ranks"]) == (2, 1)
