"""What a sweep that starts again finds in the folders of its jobs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from atrl.own_code import own_sources, write_sources
from atrl.sweep.folder import State, accuracy_of, locked, put_aside, state_of, write_record

CONFIG = {"seed": 0, "resume": None, "resume_allow": [], "trainer": {"max_steps": 10, "devices": 1}, "logger": None}


def config(**changes):
    return OmegaConf.merge(CONFIG, changes)


@pytest.fixture
def folder(tmp_path):
    """A job's folder as Hydra hands it over: its own record and an open log."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "train.log").touch()
    return tmp_path


def leave(folder, *, settings=None, finished=False, checkpoint=None) -> None:
    OmegaConf.save(config() if settings is None else settings, folder / "config.yaml")
    if finished:
        (folder / "summary.json").write_text(json.dumps({"accuracy": {"before": 0.25, "after": 0.5}}))
    if checkpoint is not None:
        place = folder / "checkpoints" / f"step_{checkpoint:06d}"
        place.mkdir(parents=True)
        (place / "rank_00000.safetensors").touch()
        (place / "state.json").write_text(json.dumps({"step": checkpoint, "format": 1, "ranks": 1}))


def test_a_folder_that_hydra_just_made_is_new(folder):
    assert state_of(folder, config()) is State.NEW


def test_a_run_that_broke_off_before_its_config_begins_again(folder):
    (folder / "job.log").write_text("error: no such file\n")
    assert state_of(folder, config()) is State.UNFINISHED


def test_a_finished_run_with_the_same_settings_is_not_run_again(folder):
    leave(folder, finished=True)
    assert state_of(folder, config()) is State.FINISHED
    # Where and how it computes is no other setting.
    assert state_of(folder, config(trainer={"devices": 2}, resume="auto", logger={"csv": {}})) is State.FINISHED
    assert accuracy_of(folder) == (0.25, 0.5)


def test_other_settings_are_refused_with_the_difference(folder):
    leave(folder, finished=True)
    with pytest.raises(
        ValueError, match=r"other settings: seed was 0 and is 3; trainer\.max_steps was 10 and is 20\."
    ) as e:
        state_of(folder, config(seed=3, trainer={"max_steps": 20}))
    assert "hydra.sweep.dir" in str(e.value) and "\n" not in str(e.value)


def test_an_unfinished_run_goes_on_only_where_that_is_asked_for_and_something_is_left(folder):
    leave(folder, checkpoint=4)
    assert state_of(folder, config()) is State.UNFINISHED
    assert state_of(folder, config(resume="auto")) is State.RESUMED
    # All steps are done, and what comes after them is missing.
    leave(folder, checkpoint=10)
    assert state_of(folder, config(resume="auto")) is State.RESUMED
    leave(folder, checkpoint=11)
    assert state_of(folder, config(resume="auto")) is State.UNFINISHED


def test_a_finished_run_whose_own_code_has_changed_is_outdated(folder, tmp_path, monkeypatch):
    (tmp_path / "scheme_of_mine.py").write_text("class Scheme: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = config(credit={"_target_": "scheme_of_mine.Scheme"})
    leave(folder, settings=own, finished=True)
    write_sources(folder, own_sources(own))
    assert state_of(folder, own) is State.FINISHED
    (tmp_path / "scheme_of_mine.py").write_text("class Scheme: power = 2\n")
    assert state_of(folder, own) is State.OUTDATED


def test_a_finished_run_can_be_made_longer(folder):
    leave(folder, finished=True, checkpoint=10)
    longer = {"trainer": {"max_steps": 20}, "resume_allow": ["trainer.max_steps"]}
    assert state_of(folder, config(resume="auto", **longer)) is State.RESUMED
    with pytest.raises(ValueError, match="other settings"):
        state_of(folder, config(**longer))


def test_files_are_put_aside_and_none_is_lost(folder):
    for attempt in ("first", "second"):
        (folder / "rollouts.jsonl").write_text(attempt)
        (folder / "steps").mkdir()
        write_record(folder, {"number": 1})
        put_aside(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".hydra", "job.json", "unfinished"]
    assert [(folder / "unfinished" / n / "rollouts.jsonl").read_text() for n in "12"] == ["first", "second"]
    assert (folder / "unfinished" / "2" / "steps").is_dir()
    assert state_of(folder, config()) is State.NEW


def test_one_process_at_a_time(folder):
    with locked(folder), pytest.raises(ValueError, match="in use by another process"), locked(folder):
        pass
    with locked(folder):
        pass


def test_a_child_keeps_the_lock_when_its_parent_lets_go(folder):
    with locked(folder) as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(ValueError, match="in use"), locked(folder):
        pass
    child.communicate(b"\n")
    with locked(folder):
        pass
