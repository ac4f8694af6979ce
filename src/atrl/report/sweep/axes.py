"""What differs between runs: the settings that make a table's columns, and the groups of runs that differ by seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from atrl.report.sweep.runs import Run
from atrl.settings import FREE

TARGET = "_target_"


@dataclass(frozen=True, slots=True)
class Group:
    """Runs with the same settings.

    Attributes:
        values: [axis] each one's value in words; None where the setting doesn't exist.
        runs: by seed; of several with one seed the last.
    """

    values: tuple[str | None, ...]
    runs: dict[int | None, Run]


def find_axes(runs: Sequence[Run], order: Sequence[str] = ()) -> list[str]:
    """The dotted keys by which `runs` differ, seeds apart.

    A component that differs is one axis, named by the option that was taken, or by its class; what is below it follows
    from it, and is an axis only where it differs between runs with the same component; so is its class, where that was
    changed by itself. Settings that are an interpolation in all runs follow from what they refer to, and `FREE` keys
    compute the same.

    Args:
        runs: any number.
        order: keys that come first, as the sweep varied them; the others follow by name.
    """
    components = _components(runs)
    keys = {key for run in runs for key in run.settings} - {"seed", *components}
    plain = [key for key in keys if not _passed_over(key, runs) and _varies(key, components, runs)]
    return sorted(components + plain, key=lambda key: (order.index(key) if key in order else len(order), key))


def shown_value(run: Run, axis: str) -> str | None:
    """A setting in words: the option or class of a component, what an interpolation says, else the value as JSON has
    it; None where it's absent."""
    if axis in run.choices and _is_component(run, axis):
        return run.choices[axis]
    if f"{axis}.{TARGET}" in run.settings:
        return str(run.settings[f"{axis}.{TARGET}"]).rpartition(".")[2]
    if axis in run.derived:
        return run.derived[axis]
    return words(run.settings[axis]) if axis in run.settings else None


def words(value: Any) -> str:
    """A setting's value as it is written in an override, floats as short as they are exact to six digits."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def group_runs(runs: Sequence[Run], axes: Sequence[str]) -> list[Group]:
    """Runs with the same values of all `axes` together, in the order of each one's first run."""
    groups: dict[tuple[str | None, ...], dict[int | None, Run]] = {}
    for run in runs:
        groups.setdefault(tuple(shown_value(run, axis) for axis in axes), {})[run.seed] = run
    return [Group(values, by_seed) for values, by_seed in groups.items()]


def _components(runs: Sequence[Run]) -> list[str]:
    """The paths at which runs have different components, or some have none; outer ones first."""
    paths = {path for run in runs for path in run.choices if _is_component(run, path)}
    paths |= {key.removesuffix(f".{TARGET}") for run in runs for key in run.settings if key.endswith(f".{TARGET}")}
    chosen: list[str] = []
    for path in sorted(paths):
        if not _passed_over(path, runs) and _varies(path, chosen, runs):
            chosen.append(path)
    return chosen


def _is_component(run: Run, path: str) -> bool:
    """Whether the config has a component, or room for one, at the path of a group.

    A plain section (`trainer`) has settings of its own, and those that set other keys have nothing there.
    """
    return f"{path}.{TARGET}" in run.settings or (path in run.settings and run.settings[path] is None)


def _varies(key: str, components: Sequence[str], runs: Sequence[Run]) -> bool:
    """Whether `key` differs between runs that have the same components above it."""
    above = [path for path in components if key.startswith(f"{path}.")]
    seen: dict[tuple[str | None, ...], set[str | None]] = {}
    for run in runs:
        seen.setdefault(tuple(shown_value(run, path) for path in above), set()).add(shown_value(run, key))
    return any(len(values) > 1 for values in seen.values())


def _passed_over(key: str, runs: Sequence[Run]) -> bool:
    if any(key == name or key.startswith(f"{name}.") for name in FREE):
        return True
    having = [run for run in runs if key in run.settings]
    if having and all(key in run.derived for run in having):
        return True
    if len(having) < len(runs):
        return False
    return all(run.settings[key] == runs[0].settings[key] for run in runs) or (
        key.endswith(".seed") and all(run.settings[key] == run.seed for run in runs)
    )
