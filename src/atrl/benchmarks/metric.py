"""A benchmark's figures as a torchmetrics metric: ranks score what they like, the sums come out the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torchmetrics import Metric

from atrl.benchmarks.figures import Figure, Units, point_values

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from atrl.benchmarks.base import Benchmark, Item, Scored


class BenchmarkMetric(Metric):
    """Adds up verdicts by item, over answers, updates and ranks, and turns them into the benchmark's figures.

    The state has a place for every item, so figures that look at several items at once (a composite problem and its
    steps, all variants of a question) are right however the items were dealt out to the ranks.

    Args:
        benchmark: says what the figures are.
        items: all problems, the same list on every rank.
    """

    full_state_update = False
    higher_is_better = True
    totals: Tensor
    counts: Tensor

    def __init__(self, benchmark: Benchmark, items: Sequence[Item], **kwargs) -> None:
        super().__init__(**kwargs)
        self.benchmark, self.items = benchmark, list(items)
        self._names = ("score", *benchmark.extras)
        self._place = {item.id: index for index, item in enumerate(self.items)}
        size = len(self.items)
        self.add_state("totals", torch.zeros(size, len(self._names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, verdicts: Iterable[tuple[str, Scored]]) -> None:
        """Add verdicts, each with its item's id."""
        for item_id, scored in verdicts:
            index = self._place[item_id]
            values = [scored.score, *(scored.extras.get(name, 0.0) for name in self._names[1:])]
            self.totals[index] += torch.tensor(values, dtype=torch.float64, device=self.totals.device)
            self.counts[index] += 1

    def compute(self) -> dict[str, float]:
        """Every figure by its name, as a share of 1.

        Raises:
            ValueError: if nothing was judged.
        """
        figures, units = self.figures()
        return point_values(figures, units.count)

    def figures(self) -> tuple[list[Figure], Units]:
        """The figures over all items that have a verdict, and their units.

        Raises:
            ValueError: if nothing was judged.
        """
        judged = [index for index, count in enumerate(self.counts.tolist()) if count]
        if not judged:
            raise ValueError(f"no answer to {self.benchmark.name} was judged: there is nothing to sum up")
        items = [self.items[index] for index in judged]
        means: np.ndarray = (self.totals[judged] / self.counts[judged, None]).cpu().numpy()
        values = {name: means[:, column] for column, name in enumerate(self._names)}
        units = Units([self.benchmark.unit(item) for item in items])
        return self.benchmark.figures(items, values, units), units
