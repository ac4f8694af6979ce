"""The curves of a run as small charts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atrl.report import svg
from atrl.report.figures import duration, memory, number, percent
from atrl.report.metrics import Curve, aligned, moving_mean, smoothing_window
from atrl.report.panels import PANELS, Line, Panel, Unit
from atrl.report.run_folder import Accuracy, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BANDS = 240
"""Steps in a stacked chart; a longer run is averaged down to as many."""

_FORMATS: dict[Unit, Callable[[float], str]] = {
    "number": number,
    "share": percent,
    "seconds": duration,
    "bytes": lambda size: memory(round(size)),
    "tokens": lambda count: number(round(count, 1)),
}


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """A curve's label, its colour number and its last value."""

    label: str
    colour: int
    last: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn panel; `svg` is markup of our own making, `note` may name how many points were not finite."""

    panel: Panel
    svg: str
    legend: list[LegendEntry]
    note: str
    window: int


def draw_charts(metrics: dict[str, Curve], summary: Summary) -> tuple[list[Chart], list[str]]:
    """Every panel that has something to show, and the titles of the expected ones that don't."""
    charts, absent = [], []
    for panel in PANELS:
        curves = [(line, curve) for line in panel.lines if (curve := _find(line, metrics)) is not None]
        accuracy = summary.accuracy if panel.endpoints else None
        if curves or (accuracy is not None and (accuracy.before, accuracy.after) != (None, None)):
            charts.append(_draw(panel, curves, accuracy, summary.steps))
        elif panel.expected:
            absent.append(panel.title)
    return charts, absent


def _find(line: Line, metrics: dict[str, Curve]) -> Curve | None:
    found = (metrics[name] for name in line.columns if name in metrics and metrics[name].steps)
    return next(found, None)


def _draw(panel: Panel, curves: list[tuple[Line, Curve]], accuracy: Accuracy | None, run_steps: int) -> Chart:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0, 2.0), layout="constrained")
    axes = figure.subplots()
    window = 1
    if panel.stacked:
        _bands(axes, curves)
    else:
        window = max([_line(axes, line, curve) for line, curve in curves], default=1)
    legend = [LegendEntry(line.label, line.colour, _FORMATS[panel.unit](curve.values[-1])) for line, curve in curves]
    if accuracy is not None:
        last_step = max([run_steps, *(curve.steps[-1] for _, curve in curves)])
        ends = _endpoints(axes, accuracy, last_step)
        legend = [*(legend if len(curves) > 1 or not ends else []), *ends]
    dress(axes, panel)
    lost = sum(curve.not_finite for _, curve in curves)
    return Chart(
        panel=panel,
        svg=svg.inline_svg(figure, prefix=f"chart-{panel.name}", label=_describe(panel, curves)),
        legend=legend,
        note=panel.note + (f"; not finite and left out: {lost}" if lost else ""),
        window=window,
    )


def _line(axes: Axes, line: Line, curve: Curve) -> int:
    """Draw a curve; a long one pale, with its moving mean on top. Returns the width of that mean."""
    colour, window = svg.SERIES[line.colour - 1], smoothing_window(len(curve.steps))
    if window > 1:
        axes.plot(curve.steps, curve.values, color=colour, alpha=0.28, linewidth=0.8)
        axes.plot(curve.steps, moving_mean(curve.values, window), color=colour, linewidth=1.6)
    else:
        axes.plot(curve.steps, curve.values, color=colour, linewidth=1.4, marker="o", markersize=2.6)
    return window


def _bands(axes: Axes, curves: list[tuple[Line, Curve]]) -> None:
    steps, values = aligned([curve for _, curve in curves], MAX_BANDS)
    if len(steps) == 1:  # a band needs a width
        steps, values = [steps[0] - 0.5, steps[0] + 0.5], [[*value, *value] for value in values]
    colours = [svg.SERIES[line.colour - 1] for line, _ in curves]
    axes.stackplot(steps, values, colors=colours, edgecolor=svg.PAPER, linewidth=0.4, alpha=0.85)
    axes.set_xlim(steps[0], steps[-1])


def _endpoints(axes: Axes, accuracy: Accuracy, last_step: int) -> list[LegendEntry]:
    """Draw the accuracies before and after the run with their intervals."""
    entries = []
    for step, label, value, interval, colour in (
        (0, "before", accuracy.before, accuracy.before_ci95, 2),
        (last_step, "after", accuracy.after, accuracy.after_ci95, 3),
    ):
        if value is None:
            continue
        reach = None if interval is None else [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
        axes.errorbar(
            [step], [value], yerr=reach, fmt="o", color=svg.SERIES[colour - 1],
            markersize=5, capsize=3.5, linewidth=1.6, zorder=5,
        )  # fmt: skip
        entries.append(LegendEntry(label, colour, percent(value)))
    axes.margins(x=0.05)
    return entries


def dress(axes: Axes, panel: Panel) -> None:
    """Scales, ticks, grid and frame, as every chart of a report has them."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    if panel.unit == "share":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0.0), 1.0 if panel.stacked else min(high, 1.03))
    elif panel.unit != "number":
        axes.set_ylim(0, 1.06 * max(0.0, axes.get_ylim()[1]) or 1.0)
    if panel.unit == "bytes":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e9:.3g} GB"))
    axes.grid(axis="y", color=svg.GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("step", color=svg.MUTED, fontsize=8, labelpad=1)
    axes.tick_params(length=0, labelsize=8, colors=svg.MUTED, pad=3)
    axes.yaxis.get_offset_text().set(size=8, color=svg.MUTED)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(svg.GRID)


def _describe(panel: Panel, curves: list[tuple[Line, Curve]]) -> str:
    show = _FORMATS[panel.unit]
    spans = [f"{line.label} from {show(curve.values[0])} to {show(curve.values[-1])}" for line, curve in curves]
    return f"{panel.title} by step" + (f": {', '.join(spans)}" if spans else "")
