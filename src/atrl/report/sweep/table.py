"""The rows of a sweep's table: each group of seeds with its means, and how it compares with its baseline."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from atrl.report.sweep.axes import Group, find_axes, group_runs, words
from atrl.report.sweep.runs import Run, finished
from atrl.report.sweep.statistics import Estimate, Paired, estimate, holm, paired
from atrl.sweep.command import config_flags

OF_A_JOB = ("seed", "logger.wandb.group", "logger.wandb.name", "logger.wandb.tags", "resume")
"""Overrides that do not belong into the command of a row."""


@dataclass(frozen=True, slots=True)
class Row:
    """One group of seeds.

    Attributes:
        number: in the table, from 1.
        values: [axis] settings in words; None where one doesn't exist.
        seeds: of its finished runs.
        missing: seeds that other rows have.
        before, after: held-out accuracy; None where no run measured it.
        curve: accuracy of the rollouts, averaged over the steps of a run.
        blank, swapped: held-out accuracy after training with pictures blanked, and with other problems' pictures.
        overhead: of credit, as a share of the steps without it; the mean over runs.
        memory: peak in bytes, the largest of the runs; of the device where there is one.
        seconds: of a run, the mean.
        problems: held-out problems of each run; None where it is not known or differs.
        compared: after, less the baseline's, seed by seed; None for the baseline, and where no seed is shared.
        adjusted: the t-test's p-value after Holm's correction for the number of rows that have one.
        is_baseline: whether others are compared with it.
        commands: what repeats it.
    """

    number: int
    values: tuple[str | None, ...]
    seeds: list[int]
    missing: list[int]
    before: Estimate | None
    after: Estimate | None
    curve: Estimate | None
    blank: Estimate | None
    swapped: Estimate | None
    overhead: float | None
    memory: int | None
    seconds: float | None
    problems: int | None
    compared: Paired | None
    adjusted: float | None
    is_baseline: bool
    commands: list[str]


@dataclass(frozen=True, slots=True)
class Table:
    """All rows, and the keys of the settings that tell them apart."""

    axes: list[str]
    rows: list[Row]
    groups: list[Group]
    """[row]"""


def make_table(runs: Sequence[Run], *, order: Sequence[str] = (), baseline: Mapping[str, Any] | None = None) -> Table:
    """Put the finished ones of `runs` into rows.

    Args:
        runs: of any number and status.
        order: keys of the settings that come first.
        baseline: settings in which a row's baseline differs from it; None compares with the first row.

    Raises:
        ValueError: if `baseline` names a setting by which the runs do not differ, or a value that none has.
    """
    done = finished(runs)
    axes = find_axes(done, order)
    groups = group_runs(done, axes)
    seeds = sorted({seed for group in groups for seed in group.runs if seed is not None})
    place = _baseline_places(groups, axes, baseline)
    rows = [_row(number, group, seeds) for number, group in enumerate(groups, 1)]
    compared = [
        None if place[row] in (None, row) else paired(_differences(groups[row], groups[place[row]]))
        for row in range(len(rows))
    ]
    adjusted = holm([None if found is None else found.t_p for found in compared])
    rows = [
        replace(row, compared=found, adjusted=p, is_baseline=index in place)
        for index, (row, found, p) in enumerate(zip(rows, compared, adjusted, strict=True))
    ]
    return Table(axes, rows, groups)


def _row(number: int, group: Group, seeds: Sequence[int]) -> Row:
    runs = list(group.runs.values())
    peaks = [run.summary.peak_memory_bytes for run in runs]
    memory = [peak.host if peak.device is None else peak.device for peak in peaks]
    curves = [run.metrics["reward/right"].values for run in runs if "reward/right" in run.metrics]
    problems = {run.summary.accuracy.samples for run in runs}
    grounded = [run.grounding for run in runs if run.grounding is not None]
    return Row(
        number=number,
        values=group.values,
        seeds=sorted(seed for seed in group.runs if seed is not None),
        missing=[seed for seed in seeds if seed not in group.runs],
        before=estimate(_known(runs, lambda run: run.summary.accuracy.before)),
        after=estimate(_known(runs, accuracy)),
        curve=estimate([fmean(values) for values in curves if values]),
        blank=estimate([found.after.blank.accuracy for found in grounded]),
        swapped=estimate([found.after.swapped.accuracy for found in grounded]),
        overhead=_mean(_known(runs, lambda run: run.summary.credit.overhead_fraction)),
        memory=max((size for size in memory if size is not None), default=None),
        seconds=_mean(_known(runs, lambda run: run.summary.seconds.get("total"))),
        problems=problems.pop() if len(problems) == 1 else None,
        compared=None,
        adjusted=None,
        is_baseline=False,
        commands=commands(runs),
    )


def accuracy(run: Run) -> float | None:
    """What a run is judged by: held-out accuracy after training."""
    return run.summary.accuracy.after


def _known(runs: Sequence[Run], read: Callable[[Run], float | None]) -> list[float]:
    return [value for value in map(read, runs) if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _differences(group: Group, base: Group) -> list[float]:
    """After, less the baseline's after, of each seed that both have."""
    pairs = [(accuracy(run), accuracy(base.runs[seed])) for seed, run in group.runs.items() if seed in base.runs]
    return [here - there for here, there in pairs if here is not None and there is not None]


def _baseline_places(
    groups: Sequence[Group], axes: Sequence[str], baseline: Mapping[str, Any] | None
) -> list[int | None]:
    """[group] the place of the one that it is compared with; None where there is none such."""
    if baseline is None:
        return [0] * len(groups)
    for key in baseline:
        if key not in axes:
            raise ValueError(f"baseline {key}: the runs do not differ by it: they do by {', '.join(axes) or 'nothing'}")
    wanted = {axes.index(key): words(value) for key, value in baseline.items()}
    for index, value in wanted.items():
        if value not in (known := {group.values[index] for group in groups}):
            raise ValueError(f"baseline {axes[index]}={value}: no run has it: they have {', '.join(map(str, known))}")
    # What is below a component that the baseline names belongs to the other component.
    below = {i for i, axis in enumerate(axes) if any(axis.startswith(f"{key}.") for key in baseline)}
    compared = [i for i in range(len(axes)) if i in wanted or i not in below]

    def matches(group: Group, other: Group) -> bool:
        return all(other.values[i] == wanted.get(i, group.values[i]) for i in compared)

    return [next((place for place, other in enumerate(groups) if matches(group, other)), None) for group in groups]


def commands(runs: Sequence[Run]) -> list[str]:
    """What repeats `runs`, which differ by their seed: one line for those of the same flags and overrides, or, where
    these are not known, one a run."""
    if any(run.overrides is None or run.seed is None for run in runs):
        return [run.command.strip() for run in runs if run.command]
    seeds: dict[tuple[tuple[str, ...], tuple[str, ...]], set[int]] = {}
    for run in runs:
        seeds.setdefault((tuple(config_flags(run.command)), _kept(run.overrides)), set()).add(run.seed)
    return [_command(flags, overrides, sorted(seeds[flags, overrides])) for flags, overrides in sorted(seeds)]


def _command(flags: Sequence[str], overrides: Sequence[str], seeds: Sequence[int]) -> str:
    sweep = ["-m"] if len(seeds) > 1 else []
    return shlex.join(["python", "train.py", *sweep, *flags, *overrides, f"seed={','.join(map(str, seeds))}"])


def _kept(overrides: Sequence[str]) -> tuple[str, ...]:
    return tuple(text for text in overrides if text.partition("=")[0].lstrip("+") not in OF_A_JOB)
