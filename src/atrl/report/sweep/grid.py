"""A sweep over two settings as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atrl.report.sweep.table import Row, Table

STRONGEST = 0.8
"""Tint of the best cell; the worst has none."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination: its row of the table, None where it is missing, and its tint from 0 to `STRONGEST`."""

    row: Row | None
    tint: float


@dataclass(frozen=True, slots=True)
class Grid:
    """Two axes crossed."""

    down: str
    across: str
    columns: list[str | None]
    rows: list[tuple[str | None, list[Cell]]]


def make_grid(table: Table) -> Grid | None:
    """The held-out accuracies by two settings; None unless there are two, with two values or more each."""
    if len(table.axes) != 2:
        return None
    down, across = (in_order({row.values[axis] for row in table.rows}) for axis in (0, 1))
    if min(len(down), len(across)) < 2:
        return None
    by_values = {row.values: row for row in table.rows}
    means = [row.after.mean for row in table.rows if row.after is not None]
    low, span = min(means, default=0.0), max(means, default=0.0) - min(means, default=0.0)

    def cell(row: Row | None) -> Cell:
        known = row is not None and row.after is not None and span > 0
        return Cell(row, STRONGEST * (row.after.mean - low) / span if known else 0.0)

    rows = [(first, [cell(by_values.get((first, second))) for second in across]) for first in down]
    return Grid(table.axes[0], table.axes[1], across, rows)


def in_order(values: Sequence[str | None] | set[str | None]) -> list[str | None]:
    """Numbers by size, then words by letters; what doesn't exist comes first."""

    def key(value: str | None) -> tuple[int, float, str]:
        if value is None:
            return (0, 0.0, "")
        try:
            return (1, float(value), "")
        except ValueError:
            return (2, 0.0, value)

    return sorted(values, key=key)
