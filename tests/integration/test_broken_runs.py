"""Runs whose sampler hangs, crashes or is killed: they end, say why, and leave the last finished step."""

from __future__ import annotations

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

from tests.integration.conftest import REPOSITORY, needs_vllm

LIMIT_S = 12
SMALL = (
    "data.train_size=64",
    "rollout.prompts_per_step=2",
    "rollout.group_size=2",
    "rollout.max_response_tokens=8",
    "trainer.max_steps=4",
    "trainer.evaluate_samples=0",
    "optimizer.warmup_steps=1",
)
SAMPLERS = "tests.integration.broken_samplers"


def run_train(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "train.py", "logger=csv", f"hydra.run.dir={folder}", *SMALL, *overrides]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")])}
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)


def break_run(folder: Path, phase: str, how: str, *overrides: str) -> subprocess.CompletedProcess:
    return run_train(
        folder, "rollout=transformers", f"rollout.timeout_s={LIMIT_S}", "~rollout.sampler.max_batch_sequences",
        f"rollout.sampler._target_={SAMPLERS}.Breaking", f"+rollout.sampler.phase={phase}",
        f"+rollout.sampler.how={how}", *overrides,
    )  # fmt: skip


class KeepCheckpoints(Callback):
    """A copy of every step's regular checkpoint."""

    def __init__(self, source: Path, into: Path) -> None:
        self._source, self._into = source, into

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        shutil.copy(self._source, self._into / f"{pl_module.steps_done}.ckpt")


@pytest.fixture(scope="module")
def regular(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint of each step of an unbroken run."""
    from atrl import pipeline, stages
    from tests.integration.conftest import compose_config

    folder = tmp_path_factory.mktemp("regular")
    parts = pipeline.instantiate_parts(
        compose_config(folder, *SMALL, "rollout=transformers", "trainer.checkpoint_every=1"), folder
    )
    pipeline.prepare_process(parts)
    data = pipeline.load_data(parts)
    keep = KeepCheckpoints(folder / "checkpoints" / "last.ckpt", folder)
    stages.reinforce(parts, data, parts.model.load(folder / "initial_model"), watchers=[keep])
    return folder


def assert_same(one, other, where: str = "") -> None:
    """Checkpoints that hold the same, bit for bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("phase", "how", "code", "cause", "step"),
    [
        # The sampler is given weights once before the first step, so its third sync is that of step 2.
        ("generate", "hang_without_the_lock", 75, "generating 2 responses to each of 2 prompts", 2),
        ("update_weights", "hang_without_the_lock", 75, "taking over the weights of step 2", 2),
        ("generate", "crash", 1, "the run broke off;", 2),
        ("update_weights", "crash", 1, "the run broke off;", 2),
    ],
)
def test_the_run_ends_with_its_cause_and_its_last_finished_step(
    tmp_path: Path, regular: Path, phase: str, how: str, code: int, cause: str, step: int
) -> None:
    done = break_run(tmp_path, phase, how)
    assert done.returncode == code, done.stderr
    (line,) = [line for line in (tmp_path / "train.log").read_text().splitlines() if cause in line]
    assert f"{tmp_path / 'checkpoints' / 'last.ckpt'} holds step {step}" in line
    assert_same(load(tmp_path / "checkpoints" / "last.ckpt"), load(regular / f"{step}.ckpt"))
    assert not (tmp_path / "checkpoints" / "last.tmp").exists()
    if code == 75:
        assert f"did not return in {LIMIT_S} s" in line and "rollout.timeout_s" in line
        if phase == "generate":
            assert re.search(r"the first is problem \S+\)", line)
        assert line in done.stderr or line.split(" - ", 2)[-1] in done.stdout + done.stderr
        hung = (tmp_path / "hung.txt").read_text()
        assert hung.startswith(f"rollout=transformers: {cause}") and "in hang_without_the_lock" in hung
    else:
        assert "the run breaks off: RuntimeError: the engine died" in (tmp_path / "train.log").read_text()
        assert "the engine died" in done.stderr and not (tmp_path / "hung.txt").exists()


@pytest.mark.parametrize(
    ("how", "code", "cause"),
    [("hang_with_the_lock", 1, "Timeout ("), ("segmentation_fault", -signal.SIGSEGV, "Segmentation fault")],
)
def test_where_no_python_code_can_run_the_cause_is_still_said(
    tmp_path: Path, regular: Path, how: str, code: int, cause: str
) -> None:
    """What is left is the last regular checkpoint."""
    done = break_run(tmp_path, "generate", how, "trainer.checkpoint_every=2")
    assert done.returncode == code
    assert cause in done.stderr and f"in {how}" in done.stderr
    assert_same(load(tmp_path / "checkpoints" / "last.ckpt"), load(regular / "2.ckpt"))


@needs_vllm
def test_a_killed_process_of_a_shared_engine_ends_the_run(tmp_path: Path) -> None:
    done = run_train(
        tmp_path, "rollout=vllm", "trainer.devices=2", "rollout.sampler.tensor_parallel_size=2",
        "rollout.sampler.cpu_cache_gib=0.1", f"rollout.sampler._target_={SAMPLERS}.KilledVllm", "rollout.timeout_s=60",
    )  # fmt: skip
    assert done.returncode != 0
    log = (tmp_path / "train.log").read_text()
    assert "the run breaks off: " in log and "last.ckpt holds step 2" in log, done.stderr
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2
