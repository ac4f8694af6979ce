"""Figures that are ratios of sums over units, so that ranks can add them up and a bootstrap can draw them again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atrl.evaluation.intervals import wilson_interval

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True, eq=False)
class Ratio:
    """``sum of numerator / sum of denominator`` over units."""

    name: str
    numerator: Float[np.ndarray, "units"]
    denominator: Float[np.ndarray, "units"]

    def value(self, weights: Float[np.ndarray, "draws units"], others: dict[str, np.ndarray]) -> np.ndarray:
        """[draws] with each unit counted as often as `weights` says; NaN where nothing is counted."""
        below = weights @ self.denominator
        return np.divide(weights @ self.numerator, below, out=np.full(len(below), np.nan), where=below != 0)


@dataclass(frozen=True, slots=True)
class MeanOf:
    """The unweighted mean of other figures, of those that count anything."""

    name: str
    parts: tuple[str, ...]

    def value(self, weights: np.ndarray, others: dict[str, np.ndarray]) -> np.ndarray:
        """[draws] from the values in `others`."""
        stacked = np.stack([others[part] for part in self.parts])
        there = ~np.isnan(stacked)
        counted = there.sum(axis=0)
        total = np.where(there, stacked, 0.0).sum(axis=0)
        return np.divide(total, counted, out=np.full(len(total), np.nan), where=counted != 0)


Figure = Ratio | MeanOf


class Units:
    """Which unit every item belongs to.

    Args:
        labels: [items] names of units.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
        self.count = len(numbers)
        self.of: Int[np.ndarray, "items"] = np.array([numbers[label] for label in labels], dtype=np.intp)

    def mean(
        self, name: str, values: Float[np.ndarray, "items"], where: Sequence[float] | np.ndarray | None = None
    ) -> Ratio:
        """The mean of `values` over the items that `where` picks (all without it)."""
        chosen = np.ones(len(values)) if where is None else np.asarray(where, dtype=float)
        return self.ratio(name, values * chosen, chosen)

    def ratio(self, name: str, numerator: np.ndarray, denominator: np.ndarray) -> Ratio:
        """The ratio of two sums over items."""
        return Ratio(name, self._sum(numerator), self._sum(denominator))

    def means_by(self, prefix: str, values: np.ndarray, labels: Sequence[Any]) -> list[Ratio]:
        """The mean of `values` for each label, in alphabetical order; items with a None belong to none."""
        known = sorted({str(label) for label in labels if label is not None})
        texts = np.array([None if label is None else str(label) for label in labels], dtype=object)
        return [self.mean(f"{prefix}{label}", values, texts == label) for label in known]

    def all_of(self, values: np.ndarray, labels: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """Per label whether every one of its items has value 1, written on its first item; others get no weight.

        Returns:
            [items] numerator and denominator, for `ratio`. Items with a None belong to no label.
        """
        numerator, denominator = np.zeros(len(values)), np.zeros(len(values))
        first: dict[str, int] = {}
        for index, label in enumerate(labels):
            if label is None:
                continue
            start = first.setdefault(label, index)
            if start == index:
                numerator[index], denominator[index] = 1.0, 1.0
            numerator[start] *= float(values[index] == 1)
        return numerator, denominator

    def _sum(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.of, weights=values, minlength=self.count)


def evaluate(figures: Iterable[Figure], weights: Float[np.ndarray, "draws units"]) -> dict[str, np.ndarray]:
    """[draws] of every figure; a `MeanOf` comes after its parts."""
    values: dict[str, np.ndarray] = {}
    for figure in figures:
        values[figure.name] = figure.value(weights, values)
    return values


def point_values(figures: Sequence[Figure], units: int) -> dict[str, float]:
    """Every figure with each unit counted once."""
    return {name: float(value[0]) for name, value in evaluate(figures, np.ones((1, units))).items()}


def bootstrap(
    figures: Sequence[Figure], units: int, *, draws: int = 2000, seed: int = 0, chunk: int = 100
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals: units are drawn with replacement, as many as there are.

    B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979). Draws in which a
    figure counts nothing are left out of its interval.

    Where all units have the same share every draw has it too, as if further units could bring nothing else: then it is
    the Wilson interval of as many independent samples as units count, and of a `MeanOf` the mean of its parts' ends.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {figure.name: [] for figure in figures}
    for start in range(0, draws, chunk):
        picked = rng.integers(0, units, size=(min(chunk, draws - start), units))
        weights = np.stack([np.bincount(row, minlength=units) for row in picked]).astype(float)
        for name, value in evaluate(figures, weights).items():
            parts[name].append(value)
    intervals: dict[str, tuple[float, float]] = {}
    for figure in figures:
        found = _interval(np.concatenate(parts[figure.name]))
        intervals[figure.name] = _of_equals(figure, intervals) if found[0] == found[1] else found
    return intervals


def _of_equals(figure: Figure, intervals: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """The interval of a figure that every draw gave the same value."""
    if isinstance(figure, MeanOf):
        low, high = np.nanmean([intervals[part] for part in figure.parts], axis=0)
        return float(low), float(high)
    counted = int((figure.denominator != 0).sum())
    value = float(figure.numerator.sum() / figure.denominator.sum())
    return wilson_interval(value * counted, counted) if 0 <= value <= 1 else (value, value)


def _interval(values: np.ndarray) -> tuple[float, float]:
    there = values[~np.isnan(values)]
    if not len(there):
        return float("nan"), float("nan")
    low, high = np.quantile(there, [0.025, 0.975])
    return float(low), float(high)
