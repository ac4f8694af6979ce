"""LogicVista (Xiao et al., arXiv 2407.04973): 448 questions of logic, some with several right letters.

The rule is that of `eval/extract_accuracy.py` of https://github.com/Yijia-Xiao/LogicVista: right where the sorted
lower-case letters are those of the gold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atrl.benchmarks.base import Benchmark, Columns, Item, Scored
from atrl.benchmarks.reading import announced, tail
from atrl.rewards.extract import final_answer

if TYPE_CHECKING:
    import numpy as np

    from atrl.benchmarks.figures import Figure, Units

NONE = "zzzzz"
"""What the authors' extraction calls an answer without a letter."""

_LETTER = r"\(?[A-Za-z]\)?"
_LED = re.compile(
    rf"[\s*$\"']*(?:(?:option|choice)s? )?({_LETTER}(?:\s*(?:,|&|and|or|、)\s*(?:and\s+)?{_LETTER})*|\d{{1,4}})"
    r"(?![A-Za-z0-9'])"
)
_JOINED = re.compile(r"\b(?:and|or)\b")
_CAPITALS = re.compile(r"(?<![A-Za-z'’])([A-Z])(?![A-Za-z'’])")
_COLUMNS: Columns = {
    "id": ["id", "index"],
    "answer": ["answer", "true answer"],
    "question": "question",
    "skill": ["skill", "reasoning skill"],
    "capability": ["broad_capability", "capability"],
    "image": ["image", "imagename"],
}


def letters(text: str) -> list[str]:
    """The sorted lower-case entries of ``B, D``, ``['b', 'd']`` or ``b``."""
    text = text.strip()
    quoted = re.findall(r"['\"]([^'\"]*)['\"]", text) if text.startswith("[") else None
    entries = text.split(",") if quoted is None else quoted
    return sorted(entry.strip().lower() for entry in entries)


def find_letters(response: str) -> str:
    """The letters that a response chooses, separated by commas; `NONE` where it chooses none.

    As the authors have it, a response that is one letter beyond E chooses none. Then in this order: the marked answer,
    what is announced, the response itself where it begins with letters, all capitals that stand alone (but for the
    words A and I).
    """
    text = tail(response)
    single = text.strip()
    if len(single) == 1 and single.lower() not in "abcde0123456789":
        return NONE
    for start in (final_answer(text), announced(text), text):
        found = _LED.match(start.strip()) if start else None
        if found and _are_letters(found.group(1), start.strip()) and not (start is text and _is_article(found)):
            return ", ".join(_split(found.group(1)))
    alone = [letter for letter in _CAPITALS.findall(text) if letter not in "AI"]
    return ", ".join(sorted(set(alone))) if alone and len(set(alone)) <= 4 else NONE


def _split(text: str) -> list[str]:
    return sorted(set(re.findall("[A-Z]|[0-9]+", _JOINED.sub(",", text).upper())))


def _are_letters(found: str, start: str) -> bool:
    """A capital is one; a small letter only where nothing follows, lest "a pattern" choose A."""
    return found == start.rstrip(".") or not any(sign.islower() for sign in _JOINED.sub("", found))


def _is_article(found: re.Match[str]) -> bool:
    """Whether a lone A or I at the start goes on as a sentence."""
    after = found.string[found.end() : found.end() + 2]
    return found.group(1) in ("A", "I") and after[:1] == " " and after[1:].isalpha()


@dataclass(frozen=True, kw_only=True)
class LogicVista(Benchmark):
    """The headline is the share that is right."""

    name = "logicvista"
    headline = "accuracy"
    empty_gold = True
    hub: str = "lscpku/LogicVista"
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))
    instruction: str = ""

    def gold(self, row: Mapping[str, Any]) -> str:
        """As the letters of an answer are recorded."""
        return ", ".join(letters(self.recorded(row["answer"])))

    def recorded(self, extraction: Any) -> str:
        """A list of letters as text."""
        if isinstance(extraction, list | tuple):
            return ", ".join(map(str, extraction))
        return str(extraction)

    def prompt(self, item: Item) -> str:
        """The data's question, which says what to choose from."""
        return "\n".join(filter(None, [str(item.get("question", "")), self.instruction]))

    def extract(self, response: str, item: Item) -> str | None:
        """Our rules in place of the authors' GPT-4 call."""
        return find_letters(response) if response.strip() else ""

    def judge(self, extraction: str | None, item: Item) -> Scored:
        """Right where the sorted letters are the gold's."""
        given = letters(extraction or "")
        prediction = None if given in ([""], [NONE]) else ", ".join(given)
        return Scored(extraction, prediction, float(given == letters(item.gold)))

    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """Accuracy, by reasoning skill and by capability; a question may count in several."""
        figures: list[Figure] = [units.mean("accuracy", values["score"])]
        for role in ("skill", "capability"):
            for label in sorted({label for item in items for label in _labels(item, role)}):
                having = [float(label in _labels(item, role)) for item in items]
                figures.append(units.mean(f"{role}/{label}", values["score"], having))
        return figures


def _labels(item: Item, role: str) -> list[str]:
    value = item.get(role, [])
    return letters(value) if isinstance(value, str) else [str(label) for label in value]
