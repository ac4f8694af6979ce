"""What a sweep's page says first: which row is best, if that can be told, and what its seeds leave open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from atrl.report.figures import probability
from atrl.report.sweep.export import points
from atrl.report.sweep.statistics import ROUNDING, t_quantile
from atrl.report.sweep.table import Row, Table
from atrl.report.text import printable

LEVEL = 0.05
"""A row is told from its baseline where the paired t-test's p-value, after Holm's correction, is below this."""


@dataclass(frozen=True, slots=True)
class Headline:
    """The page's first words.

    Attributes:
        title: what the words are of.
        words: a figure, or that there is none to show.
        row: the row that is named below; None where no single one has a claim.
        crowned: whether that row is the best, and told from its baseline.
        sentences: what stands beside them.
        cautions: what the seeds leave open.
    """

    title: str
    words: str
    row: Row | None
    crowned: bool
    sentences: list[str]
    cautions: list[str]


def headline(table: Table) -> Headline | None:
    """What `table` says of the best row; None where no accuracy was measured.

    The best is the row with the highest mean, and is crowned where it is alone there and told from its baseline. The
    test is corrected for the rows that have one; of others, with a single seed or equal differences, none is told.
    """
    measured = [row for row in table.rows if row.after is not None]
    if not measured:
        return None
    best = max(measured, key=lambda row: row.after.mean)
    compared = [row for row in measured if row.compared is not None]
    if not compared:
        return _uncompared(table, best, alone=len(measured) == 1)
    tied = [row for row in measured if row.after.mean >= best.after.mean - ROUNDING]
    above = [row for row in compared if is_told(row) and row.compared.difference.mean > 0]
    below = [row for row in compared if is_told(row) and row.compared.difference.mean < 0]
    if not above:
        return _nobody(table, compared, below)
    told = f"Told above {baseline_name(table)}: {rows_in_words(above)}."
    if len(tied) > 1:
        words = f"{rows_in_words(tied).capitalize()} tie at {points(replace(best.after, half=None))} %"
        return Headline("Best held-out accuracy", words, None, False, [told], cautions(table))
    if best not in above:
        words = f"The highest mean, {points(best.after)} %, {_why_not(best)}"
        return Headline("Best held-out accuracy", words, best, False, [told], cautions(table))
    sentences = [f"{_gain(best)} over {baseline_name(table)}, seed by seed{_evidence(best)}."]
    if len(above) > 1:
        sentences.append(f"{told} These are not tested against each other.")
    return Headline("Best held-out accuracy", f"{points(best.after)} %", best, True, sentences, cautions(table))


def is_told(row: Row) -> bool:
    """Whether the test tells a row from its baseline."""
    return row.adjusted is not None and row.adjusted < LEVEL


def _why_not(best: Row) -> str:
    """What keeps the row of the highest mean from being crowned."""
    if best.is_baseline:
        return "is a baseline’s"
    return "has no baseline to be compared with" if best.compared is None else "is not told from its baseline"


def _uncompared(table: Table, best: Row, *, alone: bool) -> Headline:
    if alone:
        why = ["There is no other row to compare it with."]
        return Headline("Held-out accuracy", f"{points(best.after)} %", best, False, why, cautions(table))
    words = f"No row can be compared with {baseline_name(table)}"
    return Headline(
        "Held-out accuracy", words, None, False, ["No row shares a measured seed with its baseline."], cautions(table)
    )


def _nobody(table: Table, compared: Sequence[Row], below: Sequence[Row]) -> Headline:
    best = max(compared, key=lambda row: row.compared.difference.mean)
    tied = [row for row in compared if row.compared.difference.mean >= best.compared.difference.mean - ROUNDING]
    words = f"No row is told {'above' if below else 'from'} {baseline_name(table)}"
    if len(tied) > 1:
        mean = replace(best.compared.difference, half=None)
        sentences = [f"{rows_in_words(tied).capitalize()} tie at {points(mean, sign=True)} points."]
    else:
        which = "highest difference" if len(compared) > 1 else "difference"
        name = f"row {best.number} ({settings_in_words(table, best)})"
        sentences = [f"The {which} is {_gain(best)} in {name}{_evidence(best)}."]
    if below:
        sentences.append(f"Told below: {rows_in_words(below)}.")
    return Headline("Held-out accuracy", words, None, False, sentences, cautions(table))


def _gain(row: Row) -> str:
    return f"{points(row.compared.difference, sign=True)} points"


def _evidence(row: Row) -> str:
    """What the test says of a row, and how much that rests on."""
    count, p = row.compared.difference.count, probability(row.adjusted)
    found = "" if row.adjusted is None else f", p (Holm) {p if p.startswith('<') else f'= {p}'}"
    found += f": {count} seed{'' if count == 1 else 's'}"
    return found if row.problems is None else f"{found} of {row.problems:,} problem{'' if row.problems == 1 else 's'}"


def baseline_name(table: Table) -> str:
    """The baseline by its settings; where there are several, whichever is a row's own."""
    found = [row for row in table.rows if row.is_baseline]
    if len(found) != 1:
        return "its baseline"
    return settings_in_words(table, found[0]) or "the baseline"


def settings_in_words(table: Table, row: Row) -> str:
    """A row's settings as they are written in an override; those that it doesn't have are left out."""
    settings = zip(table.axes, row.values, strict=True)
    return ", ".join(printable(f"{axis}={value}") for axis, value in settings if value is not None)


def rows_in_words(rows: Sequence[Row]) -> str:
    """``row 2``, or ``rows 2, 3 and 5``."""
    *first, last = [str(row.number) for row in rows]
    return f"rows {', '.join(first)} and {last}" if first else f"row {last}"


def cautions(table: Table) -> list[str]:
    """What one seed, two seeds and equal differences do not show, naming the rows unless it is all of them."""
    measured = [row for row in table.rows if row.after is not None]
    counts = [row.after.count if row.compared is None else row.compared.difference.count for row in measured]

    def where(rows: Sequence[Row]) -> str:
        return "" if len(rows) == len(measured) else f" ({rows_in_words(rows)})"

    found = []
    if one := [row for row, count in zip(measured, counts, strict=True) if count == 1]:
        found.append(f"One seed{where(one)} says nothing of chance: its figures have no interval and no test.")
    if two := [row for row, count in zip(measured, counts, strict=True) if count == 2]:
        width = f"{t_quantile(0.975, 1):.1f} standard errors to each side"
        found.append(f"Two seeds{where(two)} hardly tell: by Student’s t their intervals reach {width}.")
    if equal := [row for row in measured if row.compared is not None and row.compared.difference.equal]:
        shown = ", ".join(points(row.compared.difference, sign=True) for row in equal)
        found.append(
            f"All differences of {rows_in_words(equal)} are equal ({shown}). That shows no "
            "spread, so there is no interval and no t-test: it does not prove that other seeds would differ no more."
        )
    return found
