"""How densities are spread over the tokens of a step, anchors told from the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atrl.report import svg
from atrl.report.details import Histogram

ANCHORS, REST = 2, 7
"""Numbers of the page's series colours."""


@dataclass(frozen=True, slots=True)
class DensityChart:
    """A drawn histogram; `svg` is markup of our own making."""

    step: int
    svg: str
    share: float
    """Anchors of the tokens."""


def density_charts(histograms: Sequence[Histogram]) -> list[DensityChart]:
    """The first and the last that were recorded, on one scale of density; fewer where there are fewer."""
    ends = [histograms[0], histograms[-1]] if len(histograms) > 1 else list(histograms)
    top = max((histogram.top for histogram in ends), default=0.0)
    return [_draw(histogram, top, place) for place, histogram in enumerate(ends)]


def _draw(histogram: Histogram, top: float, place: int) -> DensityChart:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0, 2.0), layout="constrained")
    axes = figure.subplots()
    width = histogram.top / len(histogram.rest)
    left = [width * i for i in range(len(histogram.rest))]
    axes.bar(left, histogram.rest, width, align="edge", color=svg.SERIES[REST - 1], alpha=0.7)
    axes.bar(left, histogram.anchors, width, align="edge", bottom=histogram.rest, color=svg.SERIES[ANCHORS - 1])
    axes.set_xlim(0, top)
    axes.set_xlabel("density", color=svg.MUTED, fontsize=8, labelpad=1)
    axes.tick_params(length=0, labelsize=8, colors=svg.MUTED, pad=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(svg.GRID)
    tokens = sum(histogram.anchors) + sum(histogram.rest)
    share = sum(histogram.anchors) / tokens if tokens else 0.0
    label = f"densities of {tokens} tokens at step {histogram.step}, 0 to {histogram.top:g}"
    return DensityChart(histogram.step, svg.inline_svg(figure, prefix=f"chart-density{place}", label=label), share)
