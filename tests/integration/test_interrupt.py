"""Runs that are told to end: Ctrl-C, `kill`, a cluster's time limit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest

from tests.integration.test_resume import assert_same_bits, finish, start, whole

__all__ = ["whole"]

UNFINISHED = "this step is finished and saved first; a second Ctrl-C leaves at once"


def told(folder: Path, hook: str, *signals: str, step: int = 3) -> str:
    """An override: the run in `folder` sends itself `signals` in `hook` of `step`."""
    place = "tests.integration.signalling.Signalling"
    return f"+callbacks.told={{_target_:{place},hook:{hook},signals:[{','.join(signals)}],step:{step},folder:{folder}}}"


def interrupted(folder: Path, *options: str) -> tuple[int, str, bool]:
    """Exit code and last line of a run that is told to end, and whether it went on to the end of its step."""
    folder.mkdir()
    process = start(folder, *options)
    _, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors
    assert not (folder / "summary.json").exists() and not (folder / "model").exists()
    return process.returncode, errors.splitlines()[-1], UNFINISHED in (folder / "train.log").read_text()


def goes_on(folder: Path, step: int) -> str:
    state = folder / "checkpoints" / f"step_{step:06d}"
    assert json.loads((state / "state.json").read_text())["step"] == step
    return (
        f"after step {step}; state in {state}: the same command with resume=auto hydra.run.dir={folder} goes on from "
        "there"
    )


@pytest.mark.parametrize(
    ("hook", "name", "done", "waits"),
    [
        ("on_train_batch_start", "SIGINT", 2, False),
        pytest.param("on_train_batch_start", "SIGTERM", 2, False, marks=pytest.mark.slow),
        ("on_before_optimizer_step", "SIGTERM", 3, True),
        pytest.param("on_train_batch_end", "SIGUSR1", 3, True, marks=pytest.mark.slow),
    ],
)
def test_it_saves_what_is_done_and_goes_on_to_the_same_bits(
    whole: Path, tmp_path: Path, hook: str, name: str, done: int, waits: bool
) -> None:
    """Before the third step's update at once; within it, and where its records are not written, after the step."""
    folder = tmp_path / "told"
    option = told(folder, hook, name)
    code, line, waited = interrupted(folder, option)
    spoken = "Ctrl-C" if name == "SIGINT" else name
    assert (code, waited) == (128 + signal.Signals[name], waits)
    assert line == f"error: interrupted by {spoken} {goes_on(folder, done)}"
    finish(folder, option)
    assert_same_bits(folder, whole)


def test_a_second_ctrl_c_leaves_amid_an_update(whole: Path, tmp_path: Path) -> None:
    """Weights halfway between two steps are no state: the regular checkpoint is what is left."""
    folder = tmp_path / "told"
    option = told(folder, "on_before_optimizer_step", "SIGINT", "SIGINT")
    code, line, waited = interrupted(folder, option)
    assert (code, waited) == (130, True)
    assert line == f"error: interrupted by Ctrl-C {goes_on(folder, 2)}"
    finish(folder, option)
    assert_same_bits(folder, whole)


def test_before_the_first_step_there_is_nothing_to_save(tmp_path: Path) -> None:
    folder = tmp_path / "told"
    code, line, _ = interrupted(folder, told(folder, "on_train_batch_start", "SIGTERM", step=1))
    assert (code, line) == (143, "error: interrupted by SIGTERM before the first step was done")
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_several_processes_end_together_though_one_alone_was_told(tmp_path: Path, strategy: str) -> None:
    folder = tmp_path / "told"
    ranks = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true", f"trainer={strategy}")
    option = told(folder, "on_train_batch_start", "SIGTERM")
    code, line, waited = interrupted(folder, *ranks, option)
    assert (code, waited) == (143, True)
    assert line == f"error: interrupted by SIGTERM {goes_on(folder, 3)}"
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(folder) in str(process.info["cmdline"])]
    finish(folder, *ranks, option)
    assert json.loads((folder / "summary.json").read_text())["steps"] == 5
