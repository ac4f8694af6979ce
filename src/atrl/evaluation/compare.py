"""Two finished evaluations, problem by problem: the difference, its interval, a sign test, and what went up or down.

What belongs together, as the variants of a question, is a unit: drawn as one, and counted as one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from atrl.benchmarks.figures import Units
from atrl.evaluation.finished import JUDGED, MODES, Finished, read_finished
from atrl.evaluation.intervals import wilson_interval
from atrl.evaluation.measured import check_alike, in_short, stamp_differences

_SHOWN = 10
_ROUNDING = 1e-9


def compare(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Compare the two results that `config.compare` names; write `comparison.json` into `folder`, print it.

    Raises:
        ValueError: if one of them can't be read, or they can't be paired.
    """
    first, second = (read_finished(Path(name).expanduser()) for name in config.compare)
    comparison = compared(first, second, seed=config.get("seed", 0))
    (folder / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
    print("\n".join([*table(comparison), f"written to {folder}"]))
    return comparison


def compared(first: Finished, second: Finished, *, seed: int = 0) -> dict[str, Any]:
    """The comparison of the problems that both answered; differences are second minus first, in per cent.

    A unit went up where the mean score of its problems did. Records of before units were written name none: each of
    their problems is its own, unless the other result says which unit it is of. Of held-out problems each mode is
    compared by itself, and what isn't of the same problems or settings not at all.

    Raises:
        ValueError: if the benchmarks differ, or the held-out problems or their settings, or no problem is in both.
    """
    _check_kind(first, second)
    name = "benchmark" if first.benchmark else "data"
    about = {name: first.result[name], "results": [str(first.folder), str(second.folder)]}
    differences = {"stamp_differences": stamp_differences(first.result["stamp"], second.result["stamp"])}
    if first.benchmark:
        headlines = {"headlines": [first.result["headline"], second.result["headline"]]}
        return about | headlines | differences | _paired(first, second, JUDGED, seed=seed)
    check_alike(first, second, differences["stamp_differences"])
    return about | differences | {mode: _paired(first, second, mode, seed=seed) for mode in first.scores}


def _check_kind(first: Finished, second: Finished) -> None:
    if first.benchmark != second.benchmark:
        names = (result.benchmark or "held-out problems" for result in (first, second))
        one, other = (f"{result.folder} is of {name}" for result, name in zip((first, second), names, strict=True))
        raise ValueError(f"compare: {one} and {other}: no two can pair")


def _paired(first: Finished, second: Finished, mode: str, *, seed: int) -> dict[str, Any]:
    """Accuracies, difference, interval and test of the problems that both answered in `mode`."""
    ours, theirs = first.scores[mode], second.scores[mode]
    common = [name for name in ours if name in theirs]
    if not common:
        raise ValueError(f"compare: {first.folder} and {second.folder} have no problem in common")
    one, two = (np.array([scores[name] for name in common]) for scores in (ours, theirs))
    known = first.units | second.units
    return {
        "problems": len(common),
        "units_known": all(name in known for name in common),
        "only_in": [len(ours) - len(common), len(theirs) - len(common)],
        "accuracy": [100 * float(one.mean()), 100 * float(two.mean())],
        "difference": 100 * float((two - one).mean()),
        **_by_unit([known.get(name, name) for name in common], one, two, seed=seed),
    }


def _by_unit(labels: Sequence[str], one: np.ndarray, two: np.ndarray, *, seed: int) -> dict[str, Any]:
    """Interval and test of the scores `one` and `two` of problems that belong to the units `labels`."""
    units = Units(labels)
    sums = units.mean("difference", two - one)
    changes = dict(zip(dict.fromkeys(labels), sums.numerator / sums.denominator, strict=True))
    gained = [name for name, change in changes.items() if change > _ROUNDING]
    lost = [name for name, change in changes.items() if change < -_ROUNDING]
    low, high = paired_interval(sums.numerator, sums.denominator, seed=seed)
    right_or_wrong = units.count == len(labels) and np.isin([one, two], (0, 1)).all()
    return {
        "units": units.count,
        "ci95": [100 * low, 100 * high],
        "flips": {
            "test": "McNemar" if right_or_wrong else "sign test",
            "gained": len(gained),
            "lost": len(lost),
            "p": mcnemar(len(gained), len(lost)),
        },
        "gained": gained,
        "lost": lost,
    }


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value that a flip is as likely either way; 1 without a flip.

    Of n flips the lesser number is Binomial(n, 1/2): ``min(1, 2 · P(X <= min(gained, lost)))``. Q. McNemar,
    Psychometrika 12 (1947), of right and wrong; of means that went up or down it is the sign test, W. J. Dixon and
    A. M. Mood, JASA 41 (1946).
    """
    flips = gained + lost
    below = sum(comb(flips, count) for count in range(min(gained, lost) + 1))
    return min(1.0, 2 * below / 2**flips)


def paired_interval(
    differences: Sequence[float] | np.ndarray,
    problems: Sequence[float] | np.ndarray,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean difference over problems, units drawn with replacement.

    Where all units changed alike every draw is the same, as if further units could bring nothing else. Then Wilson's
    interval of as many independent samples bounds the share of units that would change otherwise: without any change
    it is ±that bound, and of the same change of all it goes from what is left if those did not change.

    Args:
        differences: [units] each the sum over its problems.
        problems: [units] how many these are.
    """
    sums, sizes = np.asarray(differences, dtype=float), np.asarray(problems, dtype=float)
    if np.ptp(sums / sizes) < _ROUNDING:
        change, (_, others) = float(sums[0] / sizes[0]), wilson_interval(0, len(sums))
        low, high = sorted((change * (1 - others), change))
        return (-others, others) if abs(change) < _ROUNDING else (low, high)
    rng = np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // len(sums))
    means = []
    for start in range(0, draws, chunk):
        picked = rng.integers(0, len(sums), size=(min(chunk, draws - start), len(sums)))
        means.append(sums[picked].sum(axis=1) / sizes[picked].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def table(comparison: Mapping[str, Any]) -> list[str]:
    """The comparison in lines; what the results do not have in common comes first."""
    lines = []
    if comparison["stamp_differences"]:
        lines.append("NOT MEASURED ALIKE: a difference may come from these and not from the models")
        lines += [f"  {name}: {in_short(*pair)}" for name, pair in comparison["stamp_differences"].items()]
    if "benchmark" in comparison:
        figures = [
            f"  (headline: {headline['name']} "
            + ("–" if headline["value"] is None else f"{headline['value']:.2f}")
            + ")"
            for headline in comparison["headlines"]
        ]
        return lines + _pairing(comparison, comparison["benchmark"], comparison, figures, alike=not lines)
    alike = not lines
    for mode in (mode for mode in MODES if mode in comparison):
        found = comparison[mode]
        lines += _pairing(comparison, f"{comparison['data']}, {mode}", found, ["", ""], alike=alike)
    return lines


def _pairing(
    comparison: Mapping[str, Any], name: str, found: Mapping[str, Any], figures: Sequence[str], *, alike: bool
) -> list[str]:
    """The lines of what `_paired` has `found`, with what is to be said of each result beside its accuracy."""
    lines = []
    if any(found["only_in"]):
        lines.append(f"  problems in one result alone, left out: {found['only_in'][0]} | {found['only_in'][1]}")
    mark = "" if alike and not lines else "  (not measured alike)"
    grouped = found["units"] < found["problems"]
    units = f" of {found['units']} units" if grouped else ""
    lines.append(f"{name}, {found['problems']} problems{units} in both{mark}")
    for path, figure, value in zip(comparison["results"], figures, found["accuracy"], strict=True):
        lines.append(f"  {value:6.2f} %{figure}  {path}")
    low, high = found["ci95"]
    lines.append(f"  difference {found['difference']:+.2f}  [{low:+.2f}, {high:+.2f}]")
    if not found["units_known"]:
        lines.append("  drawn by problem: neither result says which belong together; evaluate again to have it said")
    lines.append(_tested(found["flips"], "units" if grouped else "problems"))
    for kind in ("gained", "lost"):
        if names := found[kind]:
            more = f", … ({len(names)} in comparison.json)" if len(names) > _SHOWN else ""
            lines.append(f"  {kind}: {', '.join(names[:_SHOWN])}{more}")
    return lines


def _tested(flips: Mapping[str, Any], what: str) -> str:
    """The line of the test: right and wrong are gained and lost, means go up and down."""
    words = ("gained", "lost") if flips["test"] == "McNemar" else ("gained (mean went up)", "lost (mean went down)")
    over = "" if flips["test"] == "McNemar" else f" over {what}"
    return f"  {flips['test']}{over}: {flips['gained']} {words[0]}, {flips['lost']} {words[1]}, p = {flips['p']:.3g}"
