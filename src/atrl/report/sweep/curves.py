"""Learning curves of a sweep's rows: the mean over seeds, with the band of its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atrl.report import svg
from atrl.report.charts import LegendEntry, dress
from atrl.report.figures import number, percent
from atrl.report.metrics import Curve, moving_mean, smoothing_window
from atrl.report.panels import Line, Panel
from atrl.report.sweep.statistics import Estimate, estimate, share_limits
from atrl.report.sweep.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = len(svg.SERIES)

PANELS = (
    Panel("rollouts", "Accuracy of the rollouts", "training problems", (Line(("reward/right",), "", 1),), "share"),
    Panel("heldout", "Held-out accuracy", "on the way", (Line(("eval/accuracy",), "", 1),), "share"),
    Panel("blank", "Picture blanked", "held-out accuracy", (Line(("eval/picture_blank",), "", 1),), "share"),
    Panel("swapped", "Another’s picture", "held-out accuracy", (Line(("eval/picture_swapped",), "", 1),), "share"),
    Panel("entropy", "Entropy", "nats a token", (Line(("loss/entropy",), "", 1),)),
    Panel("length", "Response length", "tokens", (Line(("rollout/response_length",), "", 1),), "tokens"),
)  # fmt: skip
CREDIT_PANELS = (
    Panel("auc", "AUC of the scores", "for what reads the picture", (Line(("credit/anchor_auc",), "", 1),), "share"),
    Panel("recall", "Anchor recall", "of what reads the picture", (Line(("credit/anchor_recall",), "", 1),), "share"),
    Panel("spread", "Spread of the weights", "standard deviation", (Line(("credit/weight_std",), "", 1),)),
    Panel("gradient", "Gradient norm", "before clipping", (Line(("loss/gradient_norm",), "", 1),)),
    Panel("flat", "Groups without a signal", "rewards all equal", (Line(("reward/flat_groups",), "", 1),), "share"),
)  # fmt: skip
"""What stands in the block on credit."""


@dataclass(frozen=True, slots=True)
class Band:
    """A curve over seeds.

    Attributes:
        steps: [point] those that every seed logged.
        values: [point] over the seeds.
    """

    steps: list[int]
    values: list[Estimate]

    @property
    def mean(self) -> list[float]:
        """[point]"""
        return [value.mean for value in self.values]

    def limits(self, *, share: bool) -> tuple[list[float], list[float]] | None:
        """[point] the lower and upper ends of the intervals, those of shares cut; None for a single seed.

        Where all seeds are at the same value, the band has no width.
        """
        if self.values[0].count < 2:
            return None
        ends = [
            share_limits(value) if share else (value.mean - (value.half or 0.0), value.mean + (value.half or 0.0))
            for value in self.values
        ]
        return [low for low, _ in ends], [high for _, high in ends]


@dataclass(frozen=True, slots=True)
class SweepChart:
    """A drawn panel; `svg` is markup of our own making."""

    panel: Panel
    svg: str
    legend: list[LegendEntry]
    window: int


def band(curves: Sequence[Curve], window: int) -> Band | None:
    """The mean of several seeds' curves, each smoothed over `window` points first; None without a step in common."""
    tables = [dict(zip(c.steps, moving_mean(c.values, window), strict=True)) for c in curves if c.steps]
    steps = sorted(set.intersection(*map(set, tables))) if tables else []
    if not steps:
        return None
    return Band(steps, [estimate([table[step] for table in tables]) for step in steps])


def chosen_rows(table: Table) -> list[Row]:
    """The rows that are drawn: all, or baselines and the best, in the table's order."""
    if len(table.rows) <= MOST_LINES:
        return table.rows
    ranked = sorted(table.rows, key=lambda row: (not row.is_baseline, -(row.after.mean if row.after else -1.0)))
    return sorted(ranked[:MOST_LINES], key=lambda row: row.number)


def label(table: Table, row: Row) -> str:
    """A row by its settings."""
    return ", ".join("–" if value is None else value for value in row.values) or table_name(row)


def table_name(row: Row) -> str:
    """A row where nothing tells it from others."""
    return f"row {row.number}"


def draw_curves(table: Table, panels: Sequence[Panel] = PANELS) -> list[SweepChart]:
    """Every panel of which some row has a curve."""
    return [chart for panel in panels if (chart := _draw(table, panel)) is not None]


def _draw(table: Table, panel: Panel) -> SweepChart | None:
    from matplotlib.figure import Figure

    column = panel.lines[0].columns[0]
    curves = {
        row.number: [run.metrics[column] for run in table.groups[row.number - 1].runs.values() if column in run.metrics]
        for row in chosen_rows(table)
    }
    lengths = [len(curve.steps) for found in curves.values() for curve in found]
    if not any(lengths):
        return None
    window = smoothing_window(max(lengths))
    figure = Figure(figsize=(5.4, 2.9), layout="constrained")
    axes, legend = figure.subplots(), []
    show = percent if panel.unit == "share" else number
    for colour, row in enumerate(chosen_rows(table), 1):
        found = band(curves[row.number], window)
        if found is not None:
            limits = found.limits(share=panel.unit == "share")
            _line(axes, found, limits, svg.SERIES[colour - 1], strength=0.16 if len(curves) <= 4 else 0.08)
            legend.append(LegendEntry(label(table, row), colour, show(found.mean[-1])))
    dress(axes, panel)
    drawn = svg.inline_svg(figure, prefix=f"chart-{panel.name}", label=f"{panel.title} by step, {len(legend)} rows")
    return SweepChart(panel, drawn, legend, window)


def _line(
    axes: Axes, found: Band, limits: tuple[list[float], list[float]] | None, colour: str, *, strength: float
) -> None:
    dots = "o" if len(found.steps) <= 25 else None
    axes.plot(found.steps, found.mean, color=colour, linewidth=1.5, marker=dots, markersize=2.4)
    if limits is not None:
        axes.fill_between(found.steps, *limits, color=colour, alpha=strength, linewidth=0)
