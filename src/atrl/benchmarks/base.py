"""What every benchmark is made of: rows become items, an answer's text becomes a verdict, verdicts become figures.

A benchmark's `extract` and `judge` are pure functions of texts: no files, no models, no random numbers. They run in
worker processes that are killed when an answer breaks a limit, so they may meet anything.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from atrl.suggest import did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from atrl.benchmarks.figures import Figure, Units
    from atrl.data.rows import Row
    from atrl.data.tables import Table

Columns = dict[str, str | list[str]]
"""By role (what the rules call a value), the column that holds it, or several of which the first that is there."""


@dataclass(frozen=True, slots=True)
class Item:
    """One problem of a benchmark, as far as scoring looks at it."""

    id: str
    gold: str
    row: Mapping[str, Any]
    """By role: the official columns that are there."""

    def get(self, role: str, default: Any = None) -> Any:
        """The value of `role`, or `default` where the data holds none."""
        value = self.row.get(role)
        return default if value is None else value


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to one item: its response, or what somebody has already extracted from it."""

    id: str
    response: str | None = None
    extraction: Any = None
    """As it was recorded: text, a number or a list."""
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """The verdict on one answer."""

    extraction: str | None
    """The answer as it was found in the response."""
    prediction: str | None
    """The extraction in the form that the rule compares; None where there is none."""
    score: float
    """Between 0 and 1; the answer is right where it is 1."""
    extras: Mapping[str, float] = field(default_factory=dict)
    """Further values that the figures need, by the names in `Benchmark.extras`."""

    @property
    def parsed(self) -> bool:
        """Whether there was an answer to compare."""
        return self.prediction is not None


UNREAD = Scored(None, None, 0.0)
"""No answer could be read, or reading it broke a limit."""


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """The data, the official prompt and the official rule of one benchmark.

    Args:
        hub: name of the data set on the Hugging Face Hub.
        config: its configuration or configurations; None where it has one.
        split: its split or splits. Each row of several says in the column ``hub_split`` where it comes from.
        columns: by role, the column of the data, or a list of which the first that is there is taken.
        instruction: the official words around a question, where the data does not bring them.
    """

    name: ClassVar[str]
    headline: ClassVar[str]
    """Which figure stands for the whole."""
    required: ClassVar[tuple[str, ...]] = ("id", "answer")
    """Roles without which nothing can be scored; the others may be missing."""
    extras: ClassVar[tuple[str, ...]] = ()
    """Names of the values that a verdict carries besides its score."""
    unanswered: ClassVar[Mapping[str, float]] = {}
    """The extras of an answer that broke a limit; 0 where it says nothing."""
    empty_gold: ClassVar[bool] = False
    """Whether the official data has a problem with an empty answer."""
    uses_sympy: ClassVar[bool] = False
    """Whether workers should load sympy's LaTeX reader before the first answer."""
    image_roles: ClassVar[tuple[str, ...]] = ("image",)
    own_marks: ClassVar[bool] = False
    """Whether `prompt` says by marks where the pictures stand; otherwise all stand in front of it."""
    has_videos: ClassVar[bool] = False
    """Whether its questions are about videos, which `video` names."""

    hub: str
    columns: Columns
    config: str | list[str] | None = None
    split: str | list[str] = "test"
    instruction: str = ""

    # What a data row is.

    def items(self, table: Table) -> list[Item]:
        """Every row of `table` as an item, with unique ids.

        Raises:
            ValueError: if a column that is needed is missing, a value is, or two rows have one id.
        """
        found = self._found(table)
        items: dict[str, Item] = {}
        for row in table.rows:
            item = self._item(row, found)
            if item.id in items:
                raise ValueError(
                    f"{row.place}: id {item.id!r} is that of another row too: give every row of {self.name} its own"
                )
            items[item.id] = item
        return list(items.values())

    def _found(self, table: Table) -> dict[str, str]:
        """The column of each role that the table has."""
        found: dict[str, str] = {}
        for role, names in self.columns.items():
            listed = [names] if isinstance(names, str) else list(names)
            present = [name for name in listed if name in table.columns]
            if present:
                found[role] = present[0]
            elif role in self.required:
                raise ValueError(
                    f"{table.origin} has no column {' or '.join(map(repr, listed))}, the {role} of {self.name}"
                    f"{did_you_mean(listed[0], table.columns) or '.'} Its columns are {', '.join(table.columns)}; "
                    f"set benchmark.{self.name}.columns.{role}"
                )
        return found

    def _item(self, row: Row, found: Mapping[str, str]) -> Item:
        values = {
            role: row.values[column]
            for role, column in found.items()
            if row.values.get(column) is not None and role not in self.image_roles
        }
        for role in self.required:
            if role not in values:
                raise ValueError(f"{row.place}: {found[role]} is missing: fill it in, or leave the row out")
        return Item(id=self.item_id(values), gold=self.gold(values), row=values)

    def item_id(self, row: Mapping[str, Any]) -> str:
        """The benchmark's own id of a row."""
        return as_text(row["id"])  # as that of an answer

    def gold(self, row: Mapping[str, Any]) -> str:
        """The right answer, as records show it."""
        return as_text(row["answer"])

    def read_columns(self) -> list[str]:
        """All columns that may be read."""
        names = [[names] if isinstance(names, str) else list(names) for names in self.columns.values()]
        return list(dict.fromkeys(name for listed in names for name in listed))

    # What the model is asked.

    @abstractmethod
    def prompt(self, item: Item) -> str:
        """The question in the official words; pictures and videos are put in front of it, unless it has marks."""

    def video(self, item: Item) -> str | None:
        """Where the data keeps the video that is asked about, from ``data.image_folder`` on; None without one."""
        return None

    def check_asked(self, item: Item, row: Row) -> None:  # noqa: B027  most data holds nothing else
        """Raises ValueError for a row that holds what can't be asked, and that no score depends on."""

    # What is made of its answer.

    @abstractmethod
    def extract(self, response: str, item: Item) -> str | None:
        """The answer within a response, by rules alone; None where there is none."""

    @abstractmethod
    def judge(self, extraction: str | None, item: Item) -> Scored:
        """The official verdict on an extracted answer."""

    def recorded(self, extraction: Any) -> str:
        """A recorded extraction as text, whatever JSON held it."""
        return extraction if isinstance(extraction, str) else str(extraction)

    # What the verdicts sum up to.

    def unit(self, item: Item) -> str:
        """Which items stand or fall together: what the bootstrap draws. Each by itself, unless a benchmark says."""
        return item.id

    @abstractmethod
    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """All figures of the benchmark, the headline among them.

        Args:
            items: the problems that were judged.
            values: [items] "score" and the `extras`, each the mean over an item's answers.
            units: the items' units, which turn values into sums that can be drawn again.
        """


def score_one(benchmark: Benchmark, item: Item, response: str | None, extraction: Any) -> Scored:
    """One answer: an extraction that was recorded stands, otherwise the response is searched."""
    if extraction is not None:
        return benchmark.judge(benchmark.recorded(extraction), item)
    return benchmark.judge(benchmark.extract(response or "", item), item)


def check_gold(benchmark: Benchmark, items: Iterable[Item]) -> None:
    """Raises ValueError for the first item without a right answer, where the benchmark should have none."""
    if benchmark.empty_gold:
        return
    for item in items:
        if not item.gold.strip():
            raise ValueError(f"problem {item.id!r} has an empty answer: fill it in, or leave it out")


def checksum(items: Iterable[Item]) -> str:
    """SHA-256 of all that scoring looks at, whatever file format and row order it came in."""
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda item: item.id):
        content = json.dumps([item.id, item.gold, dict(item.row)], sort_keys=True, default=str, ensure_ascii=False)
        digest.update(content.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def as_text(value: Any) -> str:
    """A value of a data row as text; whole numbers that Parquet made floats lose their fraction."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def option_list(value: Any) -> list[str]:
    """Options as a list: one already, or written as Python or JSON writes a list (MMMU's data does that).

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(value, str):
        import ast

        try:
            value = ast.literal_eval(value)  # literals only: nothing is run
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise ValueError(f"options {value[:80]!r} are no list: write one") from None
    if not isinstance(value, list | tuple):
        raise ValueError(f"options must be a list, got {value!r}: write one")
    return [as_text(option) for option in value]
