"""The beginning and the end of a sweep: what is to be done is written down, and what came of it is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from atrl.sweep.record import plan_sweep, read_failures

_begun: list[Path] = []
"""The folder of the sweep that this process began, if it did."""


class SweepCallback(Callback):
    """Writes `sweep.json` when a sweep begins. Hydra makes one of it in every run.

    Args:
        baseline: settings of the jobs that the sweep's report compares others with, as ``{credit: uniform}``; a job is
            compared with the one that has these, and everything else as itself. None for the first job's settings.
    """

    def __init__(self, baseline: Mapping[str, Any] | None = None) -> None:
        self.baseline = baseline

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra calls it in the process that the user started, before any job."""
        folder = Path(config.hydra.sweep.dir)
        baseline: Any = OmegaConf.to_container(self.baseline) if OmegaConf.is_config(self.baseline) else self.baseline
        plan_sweep(
            list(config.hydra.overrides.task),
            config.hydra.sweeper.get("params") or {},
            grid=config.hydra.sweeper._target_.endswith("BasicSweeper"),
            baseline=baseline,
            config_loader=GlobalHydra.instance().config_loader(),
        ).write(folder)
        _begun[:] = [folder]


def end_sweep(*, interrupted: bool = False) -> list[str]:
    """Write the report of the sweep that this process began, and return a table of its failures, a line each.

    Returns:
        An empty list where no job failed, or if this process began no sweep that keeps a record.
    """
    if not _begun:
        return []
    sweep = _begun.pop()
    from atrl.report.sweep.runs import holds_runs

    if holds_runs(sweep):
        from atrl.report.sweep import write_sweep_report

        print(f"sweep report: {write_sweep_report([sweep], sweep)}", flush=True)
    if interrupted:
        print(f"stopped; the same command with hydra.sweep.dir={sweep} does what is missing", flush=True)
    failed = read_failures(sweep)
    if not failed:
        return []
    width = max(len(failure.shown) for failure in failed)
    return [
        f"{len(failed)} of the sweep's jobs failed; the same command with hydra.sweep.dir={sweep} runs these again:",
        *(f"  job {failure.number:<3} {failure.shown:<{width}}  {failure.error}" for failure in failed),
    ]
