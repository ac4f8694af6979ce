"""A benchmark: how many are there?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atrl.benchmarks.base import Benchmark, Columns, Item, Scored

if TYPE_CHECKING:
    import numpy as np

    from atrl.benchmarks.figures import Figure, Units

_COLUMNS: Columns = {"id": "id", "answer": "answer", "question": "question", "image": "images"}
_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True, kw_only=True)
class Counting(Benchmark):
    """Right where the last whole number of the response is the gold; `close` where it is at most 1 away."""

    name = "counting"
    headline = "accuracy"
    extras = ("close",)
    hub: str = ""
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))
    instruction: str = "Answer with a number."

    def prompt(self, item: Item) -> str:
        """The question and the instruction."""
        return f"{item.get('question', '')} {self.instruction}"

    def extract(self, response: str, item: Item) -> str | None:
        """The last whole number."""
        numbers = _NUMBER.findall(response)
        return numbers[-1] if numbers else None

    def judge(self, extraction: str | None, item: Item) -> Scored:
        """Compared as numbers; wrong where there is none."""
        if extraction is None or not _NUMBER.fullmatch(extraction.strip()):
            return Scored(extraction, None, 0.0, {"close": 0.0})
        away = abs(int(extraction) - int(item.gold))
        return Scored(extraction, str(int(extraction)), float(away == 0), {"close": float(away <= 1)})

    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """Accuracy, and the share that is at most 1 away."""
        return [units.mean("accuracy", values["score"]), units.mean("close", values["close"])]
