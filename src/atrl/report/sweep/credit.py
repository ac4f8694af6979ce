"""What a sweep's credit schemes did: how well they found what reads, how they spread the weights, and at what cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from atrl.report import figures
from atrl.report.sweep.export import Column, setting_columns
from atrl.report.sweep.runs import Run
from atrl.report.sweep.statistics import Estimate, estimate
from atrl.report.sweep.table import Row, Table


@dataclass(frozen=True, slots=True)
class Measure:
    """Something measured of each run.

    Attributes:
        title: its head in the table.
        note: what it is.
        read: a run's value; None where it wasn't measured.
        share: shown in per cent.
        of_credit: nothing without a credit scheme.
    """

    title: str
    note: str
    read: Callable[[Run], float | None]
    share: bool = False
    of_credit: bool = True


@dataclass(frozen=True, slots=True)
class CreditBlock:
    """The measures that some run has, with the table's settings before them, and what they are."""

    columns: list[Column]
    notes: list[tuple[str, str]]


def over_steps(column: str) -> Callable[[Run], float | None]:
    """Reads the mean over a run's steps of a column of `metrics.csv`."""

    def read(run: Run) -> float | None:
        curve = run.metrics.get(column)
        return fmean(curve.values) if curve is not None and curve.values else None

    return read


MEASURES = (
    Measure(
        "anchor AUC, %", "how well the scheme’s scores tell the tokens that state what was read; 50 % is chance",
        over_steps("credit/anchor_auc"), share=True,
    ),
    Measure(
        "anchor recall, %", "how many of these tokens are anchors, which grows with the share of anchors",
        over_steps("credit/anchor_recall"), share=True,
    ),
    Measure(
        "spread of weights", "standard deviation of the tokens’ weights, which average 1",
        over_steps("credit/weight_std"),
    ),
    Measure(
        "credit overhead, %", "credit’s share of a step without it",
        lambda run: run.summary.credit.overhead_fraction, share=True,
    ),
    Measure("gradient norm", "before clipping", over_steps("loss/gradient_norm"), of_credit=False),
    Measure(
        "flat groups, %", "groups whose rewards are all equal, which give no signal",
        over_steps("reward/flat_groups"), share=True, of_credit=False,
    ),
)  # fmt: skip


def credit_block(table: Table) -> CreditBlock | None:
    """What `table` says of credit; None where no run has a measure of it."""
    found = [measure for measure in MEASURES if any(_of(measure, table, row) is not None for row in table.rows)]
    if not any(measure.of_credit for measure in found):
        return None
    columns = [*setting_columns(table), *(_column(measure, table) for measure in found)]
    return CreditBlock(columns, [(measure.title.removesuffix(", %"), measure.note) for measure in found])


def _of(measure: Measure, table: Table, row: Row) -> Estimate | None:
    values = [measure.read(run) for run in table.groups[row.number - 1].runs.values()]
    return estimate([value for value in values if value is not None])


def _column(measure: Measure, table: Table) -> Column:
    found = {row.number: _of(measure, table, row) for row in table.rows}
    scale = 100 if measure.share else 1
    return Column(
        measure.title,
        lambda row: numbers(found[row.number], scale),
        {
            "mean": lambda row: None if (value := found[row.number]) is None else value.mean,
            "half of 95 % interval": lambda row: None if (value := found[row.number]) is None else value.half,
        },
    )


def numbers(value: Estimate | None, scale: int = 1) -> str:
    """A mean as ``0.548 ± 0.012``, to two digits of the half width; alone without an interval, and a dash for None."""
    if value is None or value.half is None:
        return figures.number(None if value is None else scale * value.mean)
    mean, half = scale * value.mean, scale * value.half
    places = min(6, max(0, 1 - int(f"{half:.1e}".partition("e")[2])))  # as it is rounded: 0.0996 is 0.10
    return f"{mean:.{places}f} ± {half:.{places}f}".replace("-", "−")
