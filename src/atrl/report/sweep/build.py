"""Writes a sweep's report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atrl import __version__
from atrl.report import figures
from atrl.report.sweep import export
from atrl.report.sweep.credit import credit_block
from atrl.report.sweep.curves import CREDIT_PANELS, MOST_LINES, draw_curves
from atrl.report.sweep.grid import make_grid
from atrl.report.sweep.headline import headline
from atrl.report.sweep.pending import pending
from atrl.report.sweep.runs import Run, find_runs
from atrl.report.sweep.statistics import share_limits
from atrl.report.sweep.table import Table, make_table
from atrl.report.text import printable
from atrl.sweep.record import SweepRecord

HERE = Path(__file__).parent


def write_sweep_report(
    folders: Sequence[Path], target: Path, *, baseline: Mapping[str, Any] | None = None, title: str | None = None
) -> Path:
    """Write ``sweep.html``, ``sweep.csv``, ``sweep.md`` and ``sweep.tex`` into `target`.

    The page needs nothing outside itself and asks for nothing from any network.

    Args:
        folders: runs, or folders with a run in each of theirs; a sweep's says itself what was varied.
        target: gets the files.
        baseline: settings of the rows that others are compared with; None as the sweep says, or else the first row.
        title: of the page; None for the experiments' names.

    Returns:
        The page's path.

    Raises:
        ValueError: in one line, if a folder holds no run, a file is malformed, or no row has the baseline's settings.
    """
    runs = find_runs(folders)
    record = SweepRecord.read(folders[0]) if len(folders) == 1 else None
    if baseline is None and record is not None and any(run.summary for run in runs):
        baseline = _known_baseline(runs, record)
    table = make_table(runs, order=[] if record is None else record.varied, baseline=baseline)
    credit = credit_block(table)
    files = {
        "sweep.csv": export.to_csv(table, [] if credit is None else credit.columns[len(table.axes) :]),
        "sweep.md": export.to_markdown(table),
        "sweep.tex": export.to_latex(table),
        "sweep.html": render(runs, table, record, title=title),
    }
    target.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        draft = target / f"{name}.part"  # moved in one go, so that a reader never meets half a file
        draft.write_text(content, encoding="utf-8")
        os.replace(draft, target / name)
    return target / "sweep.html"


def _known_baseline(runs: Sequence[Run], record: SweepRecord) -> Mapping[str, Any] | None:
    """The sweep's own baseline, as long as a run of it has finished."""
    try:
        make_table(runs, order=record.varied, baseline=record.baseline)
    except ValueError:
        return None
    return record.baseline


def render(runs: Sequence[Run], table: Table, record: SweepRecord | None, *, title: str | None = None) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    environment.filters |= {
        "percent": figures.percent, "number": figures.number, "printable": printable, "points": export.points,
        "limits": share_limits,
    }  # fmt: skip
    names = dict.fromkeys(run.summary.experiment for run in runs if run.summary is not None)
    style = "".join(
        (folder / name).read_text("utf-8") for folder, name in ((HERE.parent, "report.css"), (HERE, "sweep.css"))
    )
    left, credit = pending(runs, record), credit_block(table)
    return environment.get_template("sweep.html.j2").render(
        style=Markup(style),
        title=printable(title or ", ".join(names) or "sweep"),
        runs=runs,
        done=sum(run.summary is not None for run in runs),
        table=table,
        columns=export.columns(table),
        headline=headline(table),
        baselines=[row for row in table.rows if row.is_baseline],
        grid=make_grid(table),
        charts=[(chart, Markup(chart.svg)) for chart in draw_curves(table)],
        credit=credit,
        credit_charts=[(chart, Markup(chart.svg)) for chart in draw_curves(table, CREDIT_PANELS) if credit],
        most_lines=MOST_LINES,
        span=span(table),
        pending=left,
        command=None if record is None else printable(record.command),
        version=__version__,
    )


def span(table: Table) -> tuple[float, float]:
    """Accuracies from the lowest to the highest end of an interval, with a little room; both within [0, 1]."""
    ends = [share_limits(row.after) for row in table.rows if row.after is not None]
    low = min((low for low, _ in ends), default=0.0)
    high = max((high for _, high in ends), default=1.0)
    room = max(0.01, 0.05 * (high - low))
    return max(0.0, low - room), min(1.0, high + room)
