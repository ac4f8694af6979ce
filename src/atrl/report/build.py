"""Writes a run's report."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from atrl import __version__
from atrl.report import figures
from atrl.report.cards import UNIT_TINT, make_cards, scale_top
from atrl.report.charts import draw_charts
from atrl.report.density import ANCHORS, REST, density_charts
from atrl.report.groups import extremes, status_health
from atrl.report.panels import PHASE_COLOURS, STATUS_COLOURS
from atrl.report.run_folder import RunFolder
from atrl.report.selection import choose_samples
from atrl.report.text import breakable, printable

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run's folder, from what the run left there.

    The file needs nothing outside itself and asks for nothing from any network. Parts of the run that are missing
    (curves, samples, config) are left out, and the page says so.

    Args:
        run_dir: holds `summary.json`, and may hold `metrics.csv`, `grounding.json`, `samples.jsonl` with its pictures,
            `config.yaml` and `command.txt`.

    Returns:
        The file's path.

    Raises:
        ValueError: naming file, place and remedy, if `summary.json` is missing or a file is malformed.
    """
    page = render(RunFolder.read(run_dir))
    target = run_dir / "report.html"
    # In one move, so that a reader never meets half a page.
    draft = target.with_suffix(".html.part")
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, target)
    return target


def render(run: RunFolder) -> str:
    """The page as text."""
    from markupsafe import Markup

    script = (HERE / "report.js").read_text(encoding="utf-8")
    samples = choose_samples(run.samples)
    charts, absent = draw_charts(run.metrics, run.summary)
    cards = make_cards(samples, run.path)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=script_hash(script),
            summary=run.summary,
            verdict=figures.verdict(run.summary.accuracy),
            grounding=run.grounding,
            facts=figures.key_facts(run.summary),
            charts=[(chart, Markup(chart.svg)) for chart in charts],
            absent=absent,
            phases=figures.phase_shares(run.summary.seconds),
            phase_colours=PHASE_COLOURS,
            status_counts=run.summary.rewards.model_dump(),
            status_colours=STATUS_COLOURS,
            health=status_health(run.groups),
            extremes=list(zip(("Worst", "Best"), extremes(run.groups), strict=True)),
            densities=[(chart, Markup(chart.svg)) for chart in density_charts(run.density)],
            density_colours=(ANCHORS, REST),
            cards=cards,
            recorded=len(run.samples),
            scale_top=scale_top([weight for sample in samples for weight in sample.weights]),
            unit_tint=UNIT_TINT,
            card_data=[card.data() for card in cards],
            config=None if run.config is None else printable(run.config),
            command=None if run.command is None else printable(run.command).strip(),
            version=__version__,
        )
    )


def environment() -> Environment:
    """The templates of this folder; what they print is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    found.filters |= {
        "percent": figures.percent, "duration": figures.duration, "number": figures.number, "printable": printable,
        "breakable": breakable,
    }  # fmt: skip
    return found


def script_hash(script: str) -> str:
    """The script's name in the page's content security policy: no other script runs."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
