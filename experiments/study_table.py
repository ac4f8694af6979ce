"""The table of `study.py`: accuracies over seeds with their intervals, and differences to uniform's, seed by seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from atrl.report.sweep.statistics import estimate

PHASES = ("main", "controls", "variants")
"""The folders that the table reads; of the rates only the best is of interest."""
HEAD = (
    *("scheme", "rate", "seeds", "accuracy", "less uniform's, by seed", "less uniform's at the same rate"),
    *("mean over the curve", "recall", "precision", "AUC", "bimodality"),
)
ANCHORS = ("anchor_recall", "anchor_precision", "anchor_auc", "bimodality")
MEASURED_SOMETIMES = {
    "greedy": lambda run: (run["accuracy"].get("greedy") or {}).get("after"),
    "pictures blanked": lambda run: run.get("grounding", {}).get("blank"),
    "another's picture": lambda run: run.get("grounding", {}).get("swapped"),
}
"""Columns of accuracies that a task's runs may not have: of greedy answers, and without the right picture."""
Runs = dict[int, dict]
"""What was kept of each run of a scheme, by seed."""


def tables(folder: Path, tasks: Sequence[str], schemes: Sequence[str]) -> str:
    """The table of each of `tasks` that has a run in `folder`, under its name where several are asked for.

    Raises:
        ValueError: if none has.
    """
    found = [task for task in tasks if read(folder / task)]
    if not found:
        raise ValueError(f"{folder} has no runs of {' or '.join(tasks)}: name another folder or task")
    head = "" if len(tasks) == 1 else "## {}\n\n"
    return "\n\n".join(head.format(task) + table(folder / task, schemes) for task in found)


def table(folder: Path, schemes: Iterable[str]) -> str:
    """Markdown of every run whose file is in `folder`: uniform credit first, `schemes` in their order, then others."""
    found = read(folder)
    uniform = {name: runs for name, runs in found.items() if name == "uniform" or name.startswith("uniform_at_")}
    at_rate = {rate_of(runs): runs for runs in uniform.values()}
    every = [run for runs in found.values() for run in runs.values()]
    more = {name: of for name, of in MEASURED_SOMETIMES.items() if any(of(run) is not None for run in every)}
    head = (*HEAD, *more)
    rows = [head, ("---",) * len(head)]
    in_order = [name for name in dict.fromkeys([*uniform, *schemes, *sorted(found)]) if name in found]
    for scheme in in_order:
        runs = found[scheme]
        rate = rate_of(runs)
        against = (less(runs, found.get("uniform", {})), less(runs, at_rate.get(rate, {})) if rate else "")
        accuracy = shown([run["accuracy"]["after"] for run in runs.values()])
        curves = [statistics.mean(run["curve"]) for run in runs.values() if run["curve"]]
        anchors = [anchor_mean(runs, name) for name in ANCHORS]
        measures = (accuracy, *against, shown(curves), *anchors, *(if_all_have(runs, of) for of in more.values()))
        rows.append((scheme, f"{rate:g}" if rate else "", str(len(runs)), *measures))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines[1] = lines[1].replace(" ", "")
    return "\n".join(lines)


def read(folder: Path) -> dict[str, Runs]:
    """By scheme, the runs that the table is of.

    Raises:
        ValueError: if those of a scheme are of several learning rates, as where another was chosen later.
    """
    found: dict[str, Runs] = {}
    for phase in PHASES:
        for file in sorted((folder / phase).glob("*.json")):
            result = json.loads(file.read_text())
            runs, scheme, rate = found.setdefault(result["scheme"], {}), result["scheme"], result["learning_rate"]
            for other in {run["learning_rate"] for run in runs.values()} - {rate}:
                raise ValueError(
                    f"{file.parent} has runs of {scheme} at rates {other:g} and {rate:g}: move those of one away"
                )
            runs[result["seed"]] = result
    return found


def rate_of(runs: Runs) -> float | None:
    """The learning rate, which all runs of a scheme share; None of supervised ones, whose rate is another setting."""
    run = next(iter(runs.values()))
    return None if "stage=sft" in run.get("overrides", ()) else run["learning_rate"]


def anchor_mean(runs: Runs, name: str) -> str:
    """Mean over runs; empty where one of them has no such measure."""
    values = [run["anchors"].get(name) for run in runs.values()]
    return "" if None in values else f"{statistics.mean(values):.2f}"


def if_all_have(runs: Runs, measure: Callable[[dict], float | None]) -> str:
    """Mean over runs, with its interval; empty where one of them has no such measure."""
    values = [measure(run) for run in runs.values()]
    return "" if None in values else shown(values)


def less(runs: Runs, base: Runs) -> str:
    """Mean difference of accuracy to the run of `base` with the same seed, with its interval; empty where none is."""
    if runs is base:
        return ""
    ends = [(runs[seed]["accuracy"]["after"], base[seed]["accuracy"]["after"]) for seed in runs if seed in base]
    return shown([own - other for own, other in ends], sign=True)


def shown(values: list[float], *, sign: bool = False) -> str:
    """Mean over seeds ± half the width of its 95 % interval; of a single seed the value alone, of none nothing."""
    found = estimate(values)
    if found is None:
        return ""
    mean = f"{found.mean:{'+' if sign else ''}.3f}"
    return mean if found.half is None else f"{mean} ± {found.half:.3f}"
