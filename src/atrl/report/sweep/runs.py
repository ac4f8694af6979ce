"""The runs of a sweep, read from their folders: finished ones, and what is left of the others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atrl.composed import Composed, read_yaml
from atrl.report.metrics import Curve
from atrl.report.run_folder import Grounding, RunFolder, Summary
from atrl.settings import flat
from atrl.sweep.record import FILE as SWEEP

MARKS = ("summary.json", "job.json", "config.yaml")
"""A folder with one of these is a run's."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Attributes:
        folder: its own.
        settings: the resolved config by dotted key; empty where it left none.
        derived: by dotted key, settings whose values follow from others, as they were written.
        choices: the option that was taken of each config group, by the group's dotted path.
        overrides: the command line's; None where Hydra left no record.
        asked: the overrides of a later start of its sweep, which passed it over; None where there was none, or all the
            same.
        command: as it was typed; None where it is not known.
        summary: None unless the run finished.
        grounding: accuracy with and without the right pictures; None where it wasn't measured.
        metrics: by column; empty unless the run finished.
        status: "finished", or what became of it.
        error: what a failed one said.
    """

    folder: Path
    settings: dict[str, Any]
    derived: dict[str, str] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    overrides: list[str] | None = None
    asked: list[str] | None = None
    command: str | None = None
    summary: Summary | None = None
    grounding: Grounding | None = None
    metrics: dict[str, Curve] = field(default_factory=dict)
    status: str = "finished"
    error: str = ""

    @property
    def seed(self) -> int | None:
        """What its random numbers come from; None where it is not known."""
        return self.settings.get("seed") if self.summary is None else self.summary.seed


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """The runs in `folders`, each of which is a run's folder or holds such, in the order of their numbers.

    Raises:
        ValueError: if one has neither, or a run's file is malformed.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        inside = [folder] if is_run(folder) else sorted(_runs_in(folder), key=_by_number)
        if not inside:
            raise ValueError(f"{folder} holds no runs: name a run's folder, or a sweep's with a folder for each job")
        found |= dict.fromkeys(path.resolve() for path in inside)
    return [read_run(path) for path in found]


def holds_runs(folder: Path) -> bool:
    """Whether it is no run's own folder, but has such in it."""
    return not is_run(folder) and any(_runs_in(folder))


def is_run(folder: Path) -> bool:
    """Whether a run left something there."""
    return any((folder / name).is_file() for name in MARKS)


def read_run(folder: Path) -> Run:
    """A run's folder.

    Raises:
        ValueError: naming the file, if one is malformed.
    """
    job, composed = _json(folder / "job.json") or {}, Composed.read(folder)
    common: dict[str, Any] = {
        "folder": folder,
        "settings": flat(read_yaml(folder / "config.yaml")),
        "derived": composed.interpolations,
        "choices": {group.replace("/", "."): str(option) for group, option in composed.choices.items()},
        "overrides": job.get("overrides", composed.overrides),
        "asked": job.get("asked"),
    }
    if (folder / "summary.json").is_file():
        run = RunFolder.read(folder)
        return Run(**common, command=run.command, summary=run.summary, grounding=run.grounding, metrics=run.metrics)
    status = job.get("status", "unfinished")
    command = job.get("command") or _typed(folder / "command.txt")
    return Run(**common, command=command, status=_STATUS.get(status, status), error=job.get("error", ""))


_STATUS = {"running": "unfinished", "stopped": "unfinished"}


def _runs_in(folder: Path) -> Iterator[Path]:
    """The runs in `folder`; a sweep's may lie deeper, since an override that names a folder may hold a slash."""
    open_folders, deeper = [folder], (folder / SWEEP).is_file()
    while open_folders:
        here = open_folders.pop()
        for path in here.iterdir() if here.is_dir() else ():
            if path.is_dir() and is_run(path):
                yield path
            elif deeper and path.is_dir() and not path.is_symlink():
                open_folders.append(path)


def _by_number(folder: Path) -> list[Any]:
    """10 comes after 9, whatever stands around the numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(folder))]


def _typed(path: Path) -> str | None:
    """The command that a run outside a sweep left before its first step."""
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): delete it") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object: delete it")
    return content


def finished(runs: Sequence[Run]) -> list[Run]:
    """Those that left a summary."""
    return [run for run in runs if run.summary is not None]
