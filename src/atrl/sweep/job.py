"""One job of a sweep, as the sweep sees it: looked up in its folder, run as a child, and told of in one line."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from atrl.config import read_section
from atrl.sections import TrainerSettings
from atrl.settings import plain
from atrl.sweep import command as commands
from atrl.sweep.child import last_words, run_child
from atrl.sweep.devices import claimed, visible
from atrl.sweep.folder import (
    LOG,
    SUMMARY,
    State,
    accuracy_of,
    locked,
    note_asked,
    put_aside,
    state_of,
    write_record,
)
from atrl.sweep.record import Failure, SweepRecord

BESIDE_EACH_OTHER = ("joblib", "submitit_local")
"""Launchers that run several jobs of a sweep on one machine at a time."""

OF_ANOTHER_RUN = (
    *("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    "TORCHELASTIC_RUN_ID",
)
"""Variables that would make a child think that it is one process of some other run."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What Hydra says of a job."""

    number: int
    folder: Path
    sweep: Path
    overrides: list[str]
    """The job's, of the config."""
    shown: list[str]
    """Those of them that tell it from other jobs."""

    @classmethod
    def now(cls) -> _Job:
        hydra = HydraConfig.get()
        sweep = Path(hydra.sweep.dir).absolute()
        record, overrides = SweepRecord.read(sweep), list(hydra.overrides.task)
        shown = overrides if record is None else record.shown(overrides)
        return cls(int(hydra.job.num), Path(hydra.runtime.output_dir), sweep, overrides, shown)

    def say(self, words: str) -> None:
        print(": ".join([f"job {self.number}", *filter(None, [" ".join(self.shown)]), words]), flush=True)


def in_sweep() -> bool:
    """Whether this is a job that a sweep asks for, and not a run of its own."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_job(config: DictConfig, script: Path) -> float | None:
    """Run the job that Hydra has composed `config` for as a process of its own, unless it is finished already.

    Several ranks are started by torchrun, which finds a free port. The output goes to `job.log` in the job's folder,
    and how it ended to `job.json`.

    Returns:
        The held-out accuracy that the run ends with, for a sweeper that searches; None where it was not measured.

    Raises:
        ValueError: if the job can't be run as it is, or failed; in the words of the child.
    """
    job = _Job.now()
    try:
        _check(config)
        return _finish(config, job, script)
    except ValueError as error:
        Failure(job.number, " ".join(job.shown), str(error).splitlines()[0]).write(job.sweep)
        raise


def _finish(config: DictConfig, job: _Job, script: Path) -> float | None:
    with locked(job.folder) as lock:
        state = state_of(job.folder, config)
        if state is State.FINISHED:
            note_asked(job.folder, job.overrides)
            job.say(f"{_accuracy(job.folder)}, finished before")
            return accuracy_of(job.folder)[1]
        if state is State.OUTDATED:
            job.say("finished before, but code of your own has changed since: it runs again")
        if state in (State.UNFINISHED, State.OUTDATED):
            put_aside(job.folder)
        with _environment(config) as environment:
            _run(config, job, script, environment, lock)
    return accuracy_of(job.folder)[1]


def _run(config: DictConfig, job: _Job, script: Path, environment: dict[str, str], lock: int) -> None:
    command = commands.command(script, arguments(config, job.folder), ranks=ranks(config, environment))
    log, started = job.folder / LOG, time.time()
    start = log.stat().st_size if log.is_file() else 0
    record: dict[str, Any] = {
        "number": job.number, "overrides": job.overrides, "command": shlex.join(command), "status": "running",
    }  # fmt: skip
    write_record(job.folder, record)
    (job.folder / SUMMARY).unlink(missing_ok=True)  # of an earlier part of a run that goes on
    try:
        code = run_child(command, log=log, cwd=Path(HydraConfig.get().runtime.cwd), environment=environment, lock=lock)
    except BaseException:
        write_record(job.folder, record | {"status": "stopped", "seconds": time.time() - started})
        raise
    record |= {"seconds": time.time() - started, "exit_code": code}
    if code or not (job.folder / SUMMARY).is_file():
        words = last_words(log, start) or ["it said nothing"]
        write_record(job.folder, record | {"status": "failed", "error": "\n".join(words)})
        raise ValueError("\n".join(words) + f" (exit code {code}, see {os.path.relpath(log)})")
    write_record(job.folder, record | {"status": "finished"})
    job.say(f"{_accuracy(job.folder)} in {record['seconds'] / 60:.1f} min")


def arguments(config: DictConfig, folder: Path) -> list[str]:
    """The job's overrides, and what Hydra must know so that they mean the same in a run of their own."""
    hydra, job = HydraConfig.get(), _Job.now()
    flags = [f"--config-name={hydra.job.config_name}"] if hydra.job.config_name != "train" else []
    flags += [
        f"--config-dir={source.path}" for source in hydra.runtime.config_sources if source.provider == "command-line"
    ]
    kept = commands.inherited(hydra.overrides.hydra)
    tracked = commands.tracking(plain(config, resolve=False), job.overrides, sweep=job.sweep.name, shown=job.shown)
    return [*flags, *job.overrides, *kept, *tracked, f"hydra.run.dir={commands.quoted(str(folder))}"]


def ranks(config: DictConfig, environment: dict[str, str]) -> int:
    """How many processes the job trains with; "auto" is every GPU that `environment` shows it."""
    settings = read_section(config.trainer, TrainerSettings)
    if settings.devices != "auto":
        return settings.devices
    if settings.accelerator == "cpu":
        return 1
    named = environment.get("CUDA_VISIBLE_DEVICES")
    return max(1, len(visible() if named is None else named.split(",")))


def _check(config: DictConfig) -> None:
    """Raises ValueError for what no job of a sweep can be."""
    nodes = OmegaConf.select(config, "trainer.num_nodes")
    if nodes != 1:
        raise ValueError(f"trainer.num_nodes must be 1 in a sweep (-m), got {nodes}: start such a run by itself")
    if not HydraConfig.get().sweeper._target_.endswith("BasicSweeper"):
        split = OmegaConf.select(config, "trainer.evaluate_split")
        if split != "selection" or not config.trainer.evaluate_samples:
            raise ValueError(
                "a sweeper that searches chooses by held-out accuracy: set trainer.evaluate_split=selection, so that "
                "the test split chooses nothing, and trainer.evaluate_samples above 0"
            )


@contextmanager
def _environment(config: DictConfig) -> Iterator[dict[str, str]]:
    """The child's environment; where jobs run beside each other, with GPUs that are its own while the block lasts."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_ANOTHER_RUN}
    settings = read_section(config.trainer, TrainerSettings)
    beside = HydraConfig.get().runtime.choices.get("hydra/launcher") in BESIDE_EACH_OTHER
    devices = visible() if beside and settings.accelerator != "cpu" else []
    if not devices:
        yield environment
        return
    wanted = len(devices) if settings.devices == "auto" else settings.devices
    with claimed(wanted, devices) as own:
        yield environment | {"CUDA_VISIBLE_DEVICES": ",".join(own)}


def _accuracy(folder: Path) -> str:
    before, after = accuracy_of(folder)
    if after is None:
        return "accuracy not measured"
    return f"accuracy {after:.3f}" if before is None else f"accuracy {before:.3f} → {after:.3f}"
