"""A sweep's table for other programs: CSV with plain numbers, Markdown and LaTeX as it reads."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from atrl.report import figures
from atrl.report.figures import probability
from atrl.report.sweep.statistics import Estimate
from atrl.report.sweep.table import Row, Table
from atrl.report.text import printable

_FORMULA = tuple("=+-@\t\r")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "−": "$-$", "±": r"$\pm$", "–": "--", "\u202f": r"\,",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """What a table says of each row.

    Attributes:
        title: its head.
        text: what a reader sees.
        raw: [name] what goes into the CSV under ``title`` and the name; numbers stay numbers.
    """

    title: str
    text: Callable[[Row], str]
    raw: dict[str, Callable[[Row], Any]]


def points(value: Estimate | None, *, sign: bool = False) -> str:
    """An accuracy in per cent as ``44.1 ± 2.3``; the mean alone without an interval, and a dash for None."""
    if value is None:
        return "–"
    mean = f"{100 * value.mean:{'+' if sign else ''}z.1f}".replace("-", "−")
    return mean if value.half is None else f"{mean} ± {100 * value.half:.1f}"


def difference(row: Row) -> str:
    """What a row has more than its baseline, in points; that all seeds say the same is said."""
    if row.compared is None:
        return "baseline" if row.is_baseline else "–"
    found = row.compared.difference
    return points(found, sign=True) + (", all equal" if found.equal else "")


def setting_columns(table: Table) -> list[Column]:
    """A column for each setting that tells rows apart."""

    def setting(title: str, place: int) -> Column:
        return Column(
            title,
            lambda row: "–" if row.values[place] is None else printable(row.values[place]),
            {"": lambda row: row.values[place]},
        )

    return [setting(printable(axis), place) for place, axis in enumerate(table.axes)]


def columns(table: Table) -> list[Column]:
    """The columns of every form of the table, settings first."""

    def spread(title: str, get: Callable[[Row], Estimate | None], *, sign: bool = False) -> Column:
        return Column(
            title,
            lambda row: points(get(row), sign=sign),
            {
                "mean": lambda row: None if get(row) is None else get(row).mean,
                "half of 95 % interval": lambda row: None if get(row) is None else get(row).half,
            },
        )

    def compared(row: Row) -> Estimate | None:
        return None if row.compared is None else row.compared.difference

    def t_p(row: Row) -> float | None:
        return None if row.compared is None else row.compared.t_p

    def sign_p(row: Row) -> float | None:
        return None if row.compared is None else row.compared.sign_p

    controls = [spread("blanked, %", lambda row: row.blank), spread("swapped, %", lambda row: row.swapped)]
    return [
        *setting_columns(table),
        Column("seeds", seeds, {"": lambda row: len(row.seeds)}),
        spread("before, %", lambda row: row.before),
        spread("after, %", lambda row: row.after),
        Column(
            "less the baseline",
            difference,
            {
                "mean": lambda row: None if compared(row) is None else compared(row).mean,
                "half of 95 % interval": lambda row: None if compared(row) is None else compared(row).half,
            },
        ),
        Column("p (t)", lambda row: probability(t_p(row)), {"": t_p}),
        Column("p (Holm)", lambda row: probability(row.adjusted), {"": lambda row: row.adjusted}),
        Column("p (sign)", lambda row: probability(sign_p(row)), {"": sign_p}),
        spread("rollouts, %", lambda row: row.curve),
        *(controls if any(row.blank for row in table.rows) else []),
        Column("overhead", lambda row: figures.percent(row.overhead), {"share": lambda row: row.overhead}),
        Column("memory", lambda row: figures.memory(row.memory), {"bytes": lambda row: row.memory}),
        Column("time", lambda row: figures.duration(row.seconds), {"seconds": lambda row: row.seconds}),
    ]


def seeds(row: Row) -> str:
    """How many seeds a row has, and which are missing."""
    if not row.missing:
        return str(len(row.seeds)) if row.seeds else "1"
    return f"{len(row.seeds)}, missing {', '.join(map(str, row.missing))}"


def to_csv(table: Table, more: Sequence[Column] = ()) -> str:
    """Numbers in full, accuracies and shares between 0 and 1; text that a spreadsheet would run gets a quote.

    `more` columns follow those of the table.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    shown = [*columns(table), *more]
    heads = [f"{column.title.removesuffix(', %')} {name}".strip() for column in shown for name in column.raw]
    writer.writerow([inert(head) for head in [*heads, "command"]])
    for row in table.rows:
        cells = [get(row) for column in shown for get in column.raw.values()]
        cells.append("; ".join(row.commands))
        writer.writerow([inert(printable(cell)) if isinstance(cell, str) else cell for cell in cells])
    return stream.getvalue()


def inert(text: str) -> str:
    """Text that a spreadsheet takes for text: a formula begins with one of ``= + - @``, a tab or a return.

    OWASP, "CSV Injection". A plain number is one anyway.
    """
    if text.startswith(_FORMULA) and not re.fullmatch(r"[+-]?[0-9][0-9.]*(e[+-]?[0-9]+)?", text):
        return f"'{text}"
    return text


def to_markdown(table: Table) -> str:
    """A table as GitHub draws it."""
    shown = columns(table)
    left = len(table.axes)
    lines = [
        [markdown(column.title) for column in shown],
        ["---" if index < left else "---:" for index in range(len(shown))],
        *([markdown(column.text(row)) for column in shown] for row in table.rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown(text: str) -> str:
    """Text that stays text in a cell of a Markdown table."""
    return re.sub(r"([\\`*_{}\[\]<>|#!&~])", r"\\\1", " ".join(text.split()))


def to_latex(table: Table) -> str:
    """A tabular for the package booktabs."""
    shown = columns(table)
    lines = [
        "% \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{'l' * len(table.axes)}{'r' * (len(shown) - len(table.axes))}}}",
        "\\toprule",
        " & ".join(latex(column.title) for column in shown) + r" \\",
        "\\midrule",
        *(" & ".join(latex(column.text(row)) for column in shown) + r" \\" for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def latex(text: str) -> str:
    """Text as LaTeX prints it, whatever is in it."""
    return "".join(_LATEX.get(character, character) for character in text.replace("\n", " "))
