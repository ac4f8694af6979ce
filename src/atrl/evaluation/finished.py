"""What an evaluation left in its folder, of held-out problems or of a benchmark, as far as comparisons look at it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atrl.types import Status

MODES = ("greedy", "sampled")
"""How held-out problems are answered with their own pictures."""
JUDGED = "judged"
"""The only way that a benchmark's problems are answered in."""


class Refused(ValueError):
    """What is wrong with a result is known."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What an evaluation left."""

    folder: Path
    result: dict[str, Any]
    scores: dict[str, dict[str, float]]
    """By mode and problem the mean score over its answers; those without a verdict left out."""
    units: dict[str, str] = field(default_factory=dict)
    """By problem what it stands or falls with, where the records say so."""

    @property
    def benchmark(self) -> str | None:
        """Its name; None of held-out problems."""
        return self.result.get("benchmark")


def read_finished(path: Path) -> Finished:
    """A folder with `evaluation.json`, and `records.jsonl` of a benchmark or `responses.jsonl` of held-out problems.

    Raises:
        ValueError: if one of these is missing or broken, or says nothing of how it was measured.
    """
    folder = path.parent if path.name == "evaluation.json" else path
    _require(folder, "evaluation.json", "name the folder of a finished evaluation")
    try:
        result = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        read, rows = (_of_benchmark, "records.jsonl") if "benchmark" in result else (_of_held_out, "responses.jsonl")
        _require(folder, rows, "name the folder that the evaluation wrote to (a run's own has a copy of the figures)")
        if read is _of_held_out and "stamp" not in result:
            raise Refused(f"compare: {folder} doesn't say by which settings it was measured: evaluate again")
        if not isinstance(result["stamp"], dict):
            raise KeyError("stamp")
        return read(folder, result)
    except Refused:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"compare: the result in {folder} can't be read ({error!r}): evaluate again") from error


def _require(folder: Path, name: str, remedy: str) -> None:
    if not (folder / name).is_file():
        raise Refused(f"compare: {folder} has no {name}: {remedy}")


def _of_benchmark(folder: Path, result: dict[str, Any]) -> Finished:
    scores: dict[str, list[float]] = defaultdict(list)
    units: dict[str, str] = {}
    for row in _rows(folder / "records.jsonl"):
        if row.get("unit") is not None:
            units[row["id"]] = str(row["unit"])
        if row["correct"] is not None:
            scores[row["id"]].append(float(row["score"]))
    return Finished(folder, result, {JUDGED: _means(scores)}, units)


def _of_held_out(folder: Path, result: dict[str, Any]) -> Finished:
    """Each problem stands alone there."""
    modes = [mode for mode in MODES if mode in result]
    scores: dict[str, dict[str, list[float]]] = {mode: defaultdict(list) for mode in modes}
    for row in _rows(folder / "responses.jsonl"):
        if row["mode"] in scores:
            scores[row["mode"]][row["id"]].append(float(row["status"] == Status.RIGHT.value))
    means = {mode: _means(found) for mode, found in scores.items()}
    return Finished(folder, result, means, {name: name for found in means.values() for name in found})


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    """What stands in each line; a response may hold what `str.splitlines` takes for the end of one."""
    return map(json.loads, filter(None, path.read_text(encoding="utf-8").split("\n")))


def _means(scores: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: sum(values) / len(values) for name, values in scores.items()}
