"""Two finished evaluations, problem by problem: the difference, its interval, a sign test, and what went up or down.

What belongs together, as the variants of a question, is a unit: drawn as one, and counted as one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from atrl.benchmarks.figures import Units

_SHOWN = 10
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Finished:
    """What an evaluation left."""

    folder: Path
    result: dict[str, Any]
    scores: dict[str, float]
    """By problem the mean score over its answers; those without a verdict left out."""
    units: dict[str, str] = field(default_factory=dict)
    """By problem what it stands or falls with, where the records say so."""


def compare(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Compare the two results that `config.compare` names; write `comparison.json` into `folder`, print it.

    Raises:
        ValueError: if one of them can't be read, or they share no benchmark or problem.
    """
    first, second = (read_finished(Path(name).expanduser()) for name in config.compare)
    comparison = compared(first, second, seed=config.get("seed", 0))
    (folder / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
    print("\n".join([*table(comparison), f"written to {folder}"]))
    return comparison


def read_finished(path: Path) -> Finished:
    """A folder with `evaluation.json` and `records.jsonl`.

    Raises:
        ValueError: if one of these is missing or broken.
    """
    folder = path.parent if path.name == "evaluation.json" else path
    for name in ("evaluation.json", "records.jsonl"):
        if not (folder / name).is_file():
            raise ValueError(
                f"compare: {folder} has no {name}: name the folder of a finished evaluation of a benchmark"
            )
    try:
        result = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
        by_problem: dict[str, list[float]] = defaultdict(list)
        units: dict[str, str] = {}
        for row in map(json.loads, lines):
            if row.get("unit") is not None:
                units[row["id"]] = str(row["unit"])
            if row["correct"] is not None:
                by_problem[row["id"]].append(float(row["score"]))
        if not isinstance(result["stamp"], dict):
            raise KeyError("stamp")
        scores = {name: sum(values) / len(values) for name, values in by_problem.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"compare: the result in {folder} can't be read ({error!r}): evaluate again") from error
    return Finished(folder, result, scores, units)


def compared(first: Finished, second: Finished, *, seed: int = 0) -> dict[str, Any]:
    """The comparison of the problems that both answered; differences are second minus first, in per cent.

    A unit went up where the mean score of its problems did. Records of before units were written name none: each of
    their problems is its own, unless the other result says which unit it is of.

    Raises:
        ValueError: if the benchmarks differ, or no problem is in both.
    """
    names = first.result["benchmark"], second.result["benchmark"]
    if names[0] != names[1]:
        raise ValueError(f"compare: {first.folder} is of {names[0]} and {second.folder} of {names[1]}: no two can pair")
    common = [name for name in first.scores if name in second.scores]
    if not common:
        raise ValueError(f"compare: {first.folder} and {second.folder} have no problem in common")
    one, two = (np.array([result.scores[name] for name in common]) for result in (first, second))
    known = first.units | second.units
    return {
        "benchmark": names[0],
        "results": [str(first.folder), str(second.folder)],
        "headlines": [first.result["headline"], second.result["headline"]],
        "stamp_differences": stamp_differences(first.result["stamp"], second.result["stamp"]),
        "problems": len(common),
        "units_known": all(name in known for name in common),
        "only_in": [len(first.scores) - len(common), len(second.scores) - len(common)],
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


def stamp_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    """By name what two stamps say differently; what one doesn't say, as it is older, counts as None: not known."""
    names = list(dict.fromkeys([*first, *second]))
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}


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

    Args:
        differences: [units] each the sum over its problems.
        problems: [units] how many these are.
    """
    sums, sizes = np.asarray(differences, dtype=float), np.asarray(problems, dtype=float)
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
        lines += [
            f"  {name}: {' | '.join(map(_short, _apart(*pair)))}"
            for name, pair in comparison["stamp_differences"].items()
        ]
    if any(comparison["only_in"]):
        lines.append(
            f"  problems in one result alone, left out: {comparison['only_in'][0]} | {comparison['only_in'][1]}"
        )
    mark = "  (not measured alike)" if lines else ""
    grouped = comparison["units"] < comparison["problems"]
    units = f" of {comparison['units']} units" if grouped else ""
    lines.append(f"{comparison['benchmark']}, {comparison['problems']} problems{units} in both{mark}")
    for path, headline, value in zip(
        comparison["results"], comparison["headlines"], comparison["accuracy"], strict=True
    ):
        figure = "–" if headline["value"] is None else f"{headline['value']:.2f}"
        lines.append(f"  {value:6.2f} %  (headline: {headline['name']} {figure})  {path}")
    low, high = comparison["ci95"]
    lines.append(f"  difference {comparison['difference']:+.2f}  [{low:+.2f}, {high:+.2f}]")
    if not comparison["units_known"]:
        lines.append("  drawn by problem: neither result says which belong together; evaluate again to have it said")
    lines.append(_tested(comparison["flips"], "units" if grouped else "problems"))
    for kind in ("gained", "lost"):
        if names := comparison[kind]:
            more = f", … ({len(names)} in comparison.json)" if len(names) > _SHOWN else ""
            lines.append(f"  {kind}: {', '.join(names[:_SHOWN])}{more}")
    return lines


def _tested(flips: Mapping[str, Any], what: str) -> str:
    """The line of the test: right and wrong are gained and lost, means go up and down."""
    words = ("gained", "lost") if flips["test"] == "McNemar" else ("gained (mean went up)", "lost (mean went down)")
    over = "" if flips["test"] == "McNemar" else f" over {what}"
    return f"  {flips['test']}{over}: {flips['gained']} {words[0]}, {flips['lost']} {words[1]}, p = {flips['p']:.3g}"


def _apart(first: Any, second: Any) -> tuple[Any, Any]:
    """Of two mappings the entries that differ, so that `_short` doesn't cut these off."""
    if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
        return first, second
    names = stamp_differences(first, second)
    one, two = ({name: value[name] for name in names if name in value} for value in (first, second))
    return one, two


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
