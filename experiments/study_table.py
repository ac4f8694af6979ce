"""The table of `study.py`: accuracies over seeds with their intervals, and differences to uniform's, seed by seed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

PHASES = ("main", "controls", "variants")
"""The folders that the table reads; of the rates only the best is of interest."""
HEAD = (
    *("scheme", "rate", "seeds", "accuracy", "less uniform's, by seed", "less uniform's at the same rate"),
    *("mean over the curve", "recall", "precision", "AUC", "bimodality"),
)
ANCHORS = ("anchor_recall", "anchor_precision", "anchor_auc", "bimodality")
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95 % quantiles of Student's t by degrees of freedom."""

Runs = dict[int, dict]
"""What was kept of each run of a scheme, by seed."""


def table(folder: Path, schemes: Iterable[str]) -> str:
    """Markdown of every run whose file is in `folder`: uniform credit first, then `schemes` in their order."""
    found = read(folder)
    uniform = {name: runs for name, runs in found.items() if name == "uniform" or name.startswith("uniform_at_")}
    at_rate = {rate_of(runs): runs for runs in uniform.values()}
    rows = [HEAD, ("---",) * len(HEAD)]
    for scheme in [*uniform, *(name for name in schemes if name in found and name not in uniform)]:
        runs = found[scheme]
        against = (less(runs, found.get("uniform", {})), less(runs, at_rate.get(rate_of(runs), {})))
        accuracy = shown(interval([run["accuracy"]["after"] for run in runs.values()]))
        curves = [statistics.mean(run["curve"]) for run in runs.values() if run["curve"]]
        curve = shown(interval(curves)) if curves else ""
        anchors = (anchor_mean(runs, name) for name in ANCHORS)
        rows.append((scheme, f"{rate_of(runs):g}", str(len(runs)), accuracy, *against, curve, *anchors))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines[1] = lines[1].replace(" ", "")
    return "\n".join(lines)


def read(folder: Path) -> dict[str, Runs]:
    """By scheme, the runs that the table is of."""
    found: dict[str, Runs] = {}
    for phase in PHASES:
        for file in sorted((folder / phase).glob("*.json")):
            result = json.loads(file.read_text())
            found.setdefault(result["scheme"], {})[result["seed"]] = result
    return found


def rate_of(runs: Runs) -> float:
    """The learning rate, which all runs of a scheme share."""
    return next(iter(runs.values()))["learning_rate"]


def anchor_mean(runs: Runs, name: str) -> str:
    """Mean over runs; empty where one of them has no such measure."""
    values = [run["anchors"].get(name) for run in runs.values()]
    return "" if None in values else f"{statistics.mean(values):.2f}"


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval over seeds; the latter is not a number for a single seed."""
    if len(values) < 2:
        return values[0], float("nan")
    return statistics.mean(values), T95[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5


def less(runs: Runs, base: Runs) -> str:
    """Mean difference of accuracy to the run of `base` with the same seed, with its interval; empty where none is."""
    if runs is base:
        return ""
    ends = [(runs[seed]["accuracy"]["after"], base[seed]["accuracy"]["after"]) for seed in runs if seed in base]
    return shown(interval([own - other for own, other in ends]), sign=True) if ends else ""


def shown(value: tuple[float, float], *, sign: bool = False) -> str:
    """Mean ± half width; of a single run the value alone."""
    mean = f"{value[0]:{'+' if sign else ''}.3f}"
    return mean if math.isnan(value[1]) else f"{mean} ± {value[1]:.3f}"
