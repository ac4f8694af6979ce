"""We-Math (Qiao et al., ACL 2025, arXiv 2407.01284): 525 composite problems, asked whole and step by step.

The rules are those of `evaluation/four_dimensional_metrics.py` and `evaluation/accuracy.py` of
https://github.com/We-Math/We-Math.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from atrl.benchmarks.base import Benchmark, Columns, Item, Scored, as_text

if TYPE_CHECKING:
    from atrl.benchmarks.figures import Figure, Units

_KEY = re.compile(r"(\d+)steps_(\d+|multi)")
_COLUMNS: Columns = {
    "id": "ID",
    "key": "key",
    "answer": "answer",
    "question": "question",
    "option": "option",
    "image": ["image_path", "image"],
}


def find_letter(response: str) -> str | None:
    """The first character of what follows the last ``Answer``, ``><:.`` left out; None if it is none of A to H."""
    text = re.sub("[><:.]", "", response.split("Answer")[-1].strip()).strip()
    return text[0] if text and text[0] in "ABCDEFGH" else None


@dataclass(frozen=True, slots=True, eq=False)
class Mastery:
    """[composites] what became of each: exactly one of four kinds is true, strictly and loosely."""

    insufficient: np.ndarray
    """IK: the composite is wrong, and some step."""
    inadequate: np.ndarray
    """IG: the composite is wrong, and every step right."""
    complete: dict[str, np.ndarray]
    """CM: the composite is right, and every step (strict) or any (loose)."""
    rote: dict[str, np.ndarray]
    """RM: the composite is right, and not every step (strict) or none (loose)."""


def mastery(composite: np.ndarray, every: np.ndarray, some: np.ndarray) -> Mastery:
    """The four kinds.

    Args:
        composite: [composites] whether the composite is right.
        every, some: [composites] whether every step is right, whether any is.
    """
    return Mastery(
        insufficient=~composite & ~every,
        inadequate=~composite & every,
        complete={"strict": composite & every, "loose": composite & some},
        rote={"strict": composite & ~every, "loose": composite & ~some},
    )


@dataclass(frozen=True, kw_only=True)
class WeMath(Benchmark):
    """Testmini has 1,740 rows. Ids are ``<ID>/<key>``; how many steps a composite has stands in ``key``, since the ID
    may say otherwise. The headline is the strict score: (CM + 0.5 · IG) over the composites (the authors' 525)."""

    name = "wemath"
    headline = "score_strict"
    required = ("id", "key", "answer")
    hub: str = "We-Math/We-Math"
    split: str | list[str] = "testmini"
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))
    instruction: str = (
        "Now, we require you to solve a multiple-choice math question. Please briefly describe your thought process "
        "and provide the final answer(option). Response format: <Thought process>: <<your thought process>> <Answer>: "
        "<<your option>>"
    )

    def item_id(self, row: Mapping[str, Any]) -> str:
        """``<ID>/<key>``; raises ValueError for a key that is none."""
        item_id = f"{as_text(row['id'])}/{row['key']}"
        _steps(item_id, row["key"])
        return item_id

    def unit(self, item: Item) -> str:
        """A composite and its steps: the rows with one ID and one number of steps."""
        return f"{as_text(item.row['id'])}/{_key(item)[0]}"

    def prompt(self, item: Item) -> str:
        """Instruction, question and options."""
        return f"{self.instruction}\nQuestion: {item.get('question', '')}\nOption: {item.get('option', '')}"

    def extract(self, response: str, item: Item) -> str | None:
        """The letter after the last ``Answer``."""
        return find_letter(response)

    def judge(self, extraction: str | None, item: Item) -> Scored:
        """Right where the letter is the gold's."""
        letter = None if extraction is None else find_letter(extraction)
        return Scored(extraction, letter, float(letter == item.gold))

    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """Score, IK, IG, CM and RM, and the accuracy on steps and composites. A composite of which a row is missing
        counts only in the accuracies."""
        score = values["score"]
        place, composite, every, some = _composites(items, score)
        kinds = mastery(composite, every, some)

        def over(name: str, above: np.ndarray, below: np.ndarray | None = None) -> Figure:
            parts = [np.zeros(len(items)), np.zeros(len(items))]
            parts[0][place], parts[1][place] = above, np.ones(len(place)) if below is None else below
            return units.ratio(name, *parts)

        figures: list[Figure] = []
        for how in ("strict", "loose"):
            complete, rote = kinds.complete[how], kinds.rote[how]
            figures += [
                over(f"score_{how}", complete + 0.5 * kinds.inadequate),
                over(f"CM_{how}", complete),
                over(f"RM_{how}", rote, complete | rote),
            ]
        figures += [over("IK", kinds.insufficient), over("IG", kinds.inadequate)]
        keys = [_key(item) for item in items]
        figures.append(units.mean("one_step", score, [float(step != "multi") for _, step in keys]))
        for steps in sorted({steps for steps, _ in keys}):
            figures.append(units.mean(f"{steps}_steps", score, [float(key == (steps, "multi")) for key in keys]))
        return figures


def _composites(items: Sequence[Item], score: np.ndarray) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """Of the composites that are whole: their places among `items`, whether they, every and some step are right."""
    groups: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
    for index, item in enumerate(items):
        steps, step = _key(item)
        groups[str(item.row["id"]), steps][step] = index
    whole = [
        ([group[str(step)] for step in range(1, steps + 1)], group["multi"])
        for (_, steps), group in groups.items()
        if group.keys() == {*map(str, range(1, steps + 1)), "multi"}
    ]
    right = [np.array([score[step] == 1 for step in steps] or [True]) for steps, _ in whole]
    return (
        [multi for _, multi in whole],
        np.array([score[multi] == 1 for _, multi in whole], dtype=bool),
        np.array([steps.all() for steps in right], dtype=bool),
        np.array([steps.any() for steps in right], dtype=bool),
    )


def _key(item: Item) -> tuple[int, str]:
    """How many steps the composite has, and which one this is ("multi" for the composite itself)."""
    return _steps(item.id, item.row["key"])


def _steps(item_id: str, key: Any) -> tuple[int, str]:
    found = _KEY.fullmatch(str(key))
    if found is None:
        raise ValueError(f"problem {item_id!r}: key {key!r} is none of We-Math's, as 2steps_1: correct it")
    return int(found.group(1)), found.group(2)
