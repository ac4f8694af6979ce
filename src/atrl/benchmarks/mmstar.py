"""MMStar (Chen et al., NeurIPS 2024, arXiv 2403.20330): 1,500 choices that need the picture.

The rule is that of `eval/vlmeval/evaluate/mmstar.py` of https://github.com/MMStar-Benchmark/MMStar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atrl.benchmarks.base import Benchmark, Columns, Item, Scored

if TYPE_CHECKING:
    import numpy as np

    from atrl.benchmarks.figures import Figure, Units

_STARTS = ("", "(", "option ", "the answer is ")
_COLUMNS: Columns = {
    "id": ["index", "id"],
    "answer": "answer",
    "question": "question",
    "category": "category",
    "l2_category": "l2_category",
    "image": "image",
}


def find_letter(response: str, gold: str) -> str | None:
    """The character that the rule compares: the first, or what follows ``(``, ``option `` or ``the answer is ``.

    The rule asks each of these places for the gold in turn, so where one of them holds it, that is the letter.
    """
    text = response.lower().strip().replace("\n", " ")
    found = [text[len(start)] for start in _STARTS if text.startswith(start) and len(text) > len(start)]
    gold = gold.lower().strip()
    return gold if gold in found else next(iter(found[::-1]), None)


@dataclass(frozen=True, kw_only=True)
class MMStar(Benchmark):
    """The headline is the share of all questions that is right; the six categories are of the same size."""

    name = "mmstar"
    headline = "accuracy"
    hub: str = "Lin-Chen/MMStar"
    split: str | list[str] = "val"
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))
    instruction: str = "Answer with the option's letter from the given choices directly."

    def prompt(self, item: Item) -> str:
        """The question, which holds its options, and the instruction."""
        return f"{item.get('question', '')}\n{self.instruction}"

    def extract(self, response: str, item: Item) -> str | None:
        """The letter that the rule would compare."""
        return find_letter(response, item.gold)

    def judge(self, extraction: str | None, item: Item) -> Scored:
        """Right where the letter is the gold's."""
        letter = find_letter(extraction or "", item.gold)
        return Scored(extraction, letter, float(letter is not None and letter == item.gold.lower().strip()))

    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """Accuracy, by category and by its parts."""
        score = values["score"]
        parts = [f"{item.get('category')}/{item.get('l2_category')}" for item in items]
        return [
            units.mean("accuracy", score),
            *units.means_by("category/", score, [item.get("category") for item in items]),
            *units.means_by("part/", score, parts if items[0].get("l2_category") else [None] * len(items)),
        ]
