"""What a sweep writes beside its jobs: what it is to do (`sweep.json`), and what failed in this start of it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

FILE, FAILURES = "sweep.json", "failures.jsonl"


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """A sweep as it was asked for.

    Attributes:
        command: what the user typed.
        varied: the keys that differ between jobs, in the order in which they were given.
        jobs: [job] its overrides, where they are known from the start: a sweeper that searches makes them up.
        baseline: settings of the jobs that the others are compared with; None for the first job's.
    """

    command: str
    varied: list[str]
    jobs: list[list[str]] | None
    baseline: dict[str, Any] | None = field(default=None)

    def write(self, folder: Path) -> None:
        """Leave `sweep.json`, and forget what failed in an earlier start."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        (folder / FAILURES).unlink(missing_ok=True)

    @classmethod
    def read(cls, folder: Path) -> SweepRecord | None:
        """The record of the sweep in `folder`; None where there is none.

        Raises:
            ValueError: if the file is broken.
        """
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder / FILE} can't be read ({error}): delete it, or start the sweep again") from None

    def shown(self, overrides: Sequence[str]) -> list[str]:
        """Those of a job's overrides that tell it from the other jobs."""
        return [text for text in overrides if text.partition("=")[0].lstrip("+") in self.varied]


def plan_sweep(
    overrides: Sequence[str],
    params: Mapping[str, Any],
    *,
    grid: bool,
    baseline: Mapping[str, Any] | None = None,
    config_loader: ConfigLoader | None = None,
) -> SweepRecord:
    """The record of a sweep.

    Args:
        overrides: the command line's, sweeps as ``seed=0,1,2``.
        params: ``hydra.sweeper.params``, which come first and give way to `overrides`.
        grid: whether every combination becomes a job, as Hydra's own sweeper has it.
        baseline: as the experiment names it.
        config_loader: knows the options of each group, which ``credit=glob(*)`` asks for.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parsed = OverridesParser.create(config_loader).parse_overrides(
        [*(f"{key}={value}" for key, value in params.items()), *overrides]
    )
    last = {override.get_key_element(): override for override in parsed}
    varied = [key.lstrip("+") for key, override in last.items() if override.is_sweep_override()]
    jobs = BasicSweeper.split_arguments(list(last.values()), max_batch_size=None)[0] if grid else None
    command = f"python {shlex.join(sys.argv)}"
    return SweepRecord(command, varied, jobs, None if baseline is None else dict(baseline))


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that could not be run, or ended in an error; one line."""

    number: int
    shown: str
    error: str

    def write(self, folder: Path) -> None:
        """Add it to the sweep's; jobs in other processes may do so at the same time."""
        with (folder / FAILURES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self)) + "\n")


def read_failures(folder: Path) -> list[Failure]:
    """Those of the sweep's last start, in the order of the jobs."""
    if not (folder / FAILURES).is_file():
        return []
    lines = (folder / FAILURES).read_text(encoding="utf-8").splitlines()
    return sorted((Failure(**json.loads(line)) for line in lines), key=lambda failure: failure.number)
