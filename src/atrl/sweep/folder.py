"""A job's folder: what an earlier start of the sweep left in it, and that one process at a time writes there."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from atrl.own_code import changed_since, own_sources, read_sources
from atrl.settings import differences, plain, settings_of

CONFIG, SUMMARY, JOB, LOG, LOCK, ASIDE = "config.yaml", "summary.json", "job.json", "job.log", ".lock", "unfinished"
KEPT = (".hydra", JOB, LOCK, ASIDE)
"""What stays where it is when an unfinished run's files are put aside."""


class State(StrEnum):
    """What there is to do for a job."""

    NEW = "new"
    FINISHED = "finished"
    UNFINISHED = "unfinished"
    OUTDATED = "outdated"
    RESUMED = "resumed"


def state_of(folder: Path, config: DictConfig) -> State:
    """What the job with this config finds in its folder.

    A run is finished where it left its summary, and outdated if code of one's own has changed since. It goes on where
    ``resume=auto`` asks for it and a checkpoint is left that is not beyond its last step. Otherwise it has to begin
    again.

    Raises:
        ValueError: if a run with other settings lies there, with the differences.
    """
    if not (folder / CONFIG).is_file():
        left = [path for path in folder.iterdir() if path.name not in KEPT]
        # Hydra has just opened a log.
        return State.UNFINISHED if any(path.is_dir() or path.stat().st_size for path in left) else State.NEW
    before, now = plain(OmegaConf.load(folder / CONFIG), resolve=False), settings_of(config)
    goes_on = config.resume == "auto"
    different = differences(before, now, allow=config.resume_allow if goes_on else ())
    if different:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(different)}. Take another hydra.sweep.dir, or "
            "hydra.sweep.subdir='${hydra.job.override_dirname}' to name the folders by their settings"
        )
    if (folder / SUMMARY).is_file() and not differences(before, now):
        return State.OUTDATED if changed_since(read_sources(folder), own_sources(config)) else State.FINISHED
    return State.RESUMED if goes_on and _can_go_on(folder, config.trainer.max_steps) else State.UNFINISHED


def _can_go_on(folder: Path, max_steps: int) -> bool:
    from atrl.checkpoint import newest_checkpoint  # brings torch

    checkpoint = newest_checkpoint(folder / "checkpoints")
    return checkpoint is not None and checkpoint.step <= max_steps


def put_aside(folder: Path) -> Path:
    """Move what an unfinished run left into a numbered folder of its own beneath `folder`, and return that."""
    root = folder / ASIDE
    root.mkdir(exist_ok=True)
    place = root / str(1 + max((int(path.name) for path in root.iterdir() if path.name.isdecimal()), default=0))
    place.mkdir()
    for path in list(folder.iterdir()):
        if path.name not in KEPT:
            path.rename(place / path.name)
    return place


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Keeps every other process from running the job meanwhile; gives the lock's file descriptor.

    A child that inherits it keeps the lock even when this process is killed.

    Raises:
        ValueError: if another process has it.
    """
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder} is in use by another process: wait until it ends, or end it") from None
        yield file.fileno()


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write `job.json`, whole or not at all."""
    beside = folder / f".{JOB}"
    beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    beside.replace(folder / JOB)


def note_asked(folder: Path, overrides: Sequence[str]) -> None:
    """Add to a finished job's record what a later start asked of it: the same, but perhaps computed elsewhere."""
    file = folder / JOB
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if record.get("overrides") != list(overrides):
        write_record(folder, record | {"asked": list(overrides)})


def accuracy_of(folder: Path) -> tuple[float | None, float | None]:
    """The held-out accuracy before and after the finished run; None where it was not measured."""
    accuracy = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["accuracy"]
    return accuracy["before"], accuracy["after"]
