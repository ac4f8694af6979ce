"""The curves in `metrics.csv`, as Lightning's CSVLogger writes it."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True)
class Curve:
    """One logged quantity over the steps at which it was logged.

    Attributes:
        steps: [points] in ascending order.
        values: [points] finite.
        not_finite: how many points were NaN or infinite, and are left out.
    """

    steps: list[int]
    values: list[float]
    not_finite: int = 0


def read_metrics(path: Path) -> dict[str, Curve]:
    """Every column that holds numbers, by name. Empty cells are skipped: a row holds what one call logged.

    Raises:
        ValueError: naming file, line and column, if a cell is no number or the column `step` is missing.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if reader.fieldnames is not None and "step" not in reader.fieldnames:
            raise ValueError(f"{path} has no column 'step': write it with Lightning's CSVLogger")
        for row in reader:
            where = f"{path} line {reader.line_num}"
            step = int(_number(row["step"], f"{where}, column 'step'"))
            for name, cell in row.items():
                if name not in (None, "step", "epoch") and cell:
                    points.setdefault(name, []).append((step, _number(cell, f"{where}, column {name!r}")))
    return {name: _curve(pairs) for name, pairs in points.items()}


def _curve(pairs: list[tuple[int, float]]) -> Curve:
    finite = sorted((pair for pair in pairs if math.isfinite(pair[1])), key=lambda pair: pair[0])
    return Curve([step for step, _ in finite], [value for _, value in finite], len(pairs) - len(finite))


def _number(cell: str, where: str) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {cell!r} is not a number: log plain numbers") from None


def moving_mean(values: list[float], window: int) -> list[float]:
    """[points] the mean over up to `window` points around each, fewer at the ends; `window` is odd."""
    assert window % 2 == 1, f"a centred window has an odd width, got {window}"
    if not values:
        return []
    # One long kernel over a short series would change its length in mode "same".
    kernel = np.ones(min(window, 2 * len(values) - 1))
    half = len(kernel) // 2
    sums = np.convolve(values, kernel)[half : half + len(values)]
    counts = np.convolve(np.ones(len(values)), kernel)[half : half + len(values)]
    return (sums / counts).tolist()


def smoothing_window(points: int) -> int:
    """Points to average over: about a fifteenth of the curve, odd; 1 (none) for a curve of up to 25 points."""
    return 1 if points <= 25 else points // 30 * 2 + 1


def aligned(curves: list[Curve], most: int) -> tuple[list[float], list[list[float]]]:
    """Curves on common steps, for stacking; a missing point is 0, since its phase did not run in that step.

    Returns:
        The steps, and for each curve its values there. More than `most` steps are averaged in equal runs.
    """
    steps = sorted({step for curve in curves for step in curve.steps})
    tables = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
    rows = np.array([[float(step) for step in steps], *([table.get(step, 0.0) for step in steps] for table in tables)])
    runs = np.array_split(np.arange(len(steps)), min(most, len(steps)))
    means = np.stack([rows[:, run].mean(axis=1) for run in runs], axis=1)
    return means[0].tolist(), means[1:].tolist()
