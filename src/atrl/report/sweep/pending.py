"""What a sweep still owes: jobs that failed, stopped or were not begun."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from atrl.report.sweep.runs import Run
from atrl.report.sweep.table import OF_A_JOB
from atrl.sweep.command import config_flags
from atrl.sweep.record import SweepRecord


@dataclass(frozen=True, slots=True)
class Pending:
    """A job without a summary: its name, its status, what it said, and the command that runs it by itself."""

    name: str
    status: str
    error: str
    command: str


def pending(runs: Sequence[Run], record: SweepRecord | None) -> list[Pending]:
    """The runs that did not finish, and the jobs of the sweep that no folder is of."""
    found = [
        Pending(
            run.folder.name,
            run.status,
            run.error,
            _command(run.overrides, run.command) if run.overrides else run.command or "",
        )
        for run in runs
        if run.summary is None
    ]
    if record is None or record.jobs is None:
        return found
    begun = [_plain(said) for run in runs for said in (run.overrides, run.asked) if said is not None]
    for number, job in enumerate(record.jobs):
        if _plain(job) not in begun:
            found.append(Pending(str(number), "not begun", "", _command(job, record.command)))
    return found


def _plain(overrides: Sequence[str]) -> list[str]:
    """What Hydra was told of the config; what we add for W&B aside."""
    return [text for text in overrides if text.partition("=")[0].lstrip("+") not in set(OF_A_JOB) - {"seed"}]


def _command(overrides: Sequence[str], started_by: str | None) -> str:
    return shlex.join(["python", "train.py", *config_flags(started_by), *_plain(overrides)])
