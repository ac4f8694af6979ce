"""MathVista (Lu et al., ICLR 2024, arXiv 2310.02255): visual mathematics, choices, whole numbers, decimals and lists.

The rule is that of the authors' `evaluation/calculate_score.py` (https://github.com/lupantech/MathVista). Officially
GPT-4 extracts the answer first, as a judge does here in the words of `mathvista_prompt.py`; without one our rules do,
and the stamp says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atrl.benchmarks.base import Benchmark, Columns, Item, Scored, as_text, option_list
from atrl.benchmarks.judge import JudgeRequest
from atrl.benchmarks.mathvista_prompt import EXAMPLES
from atrl.benchmarks.reading import find_choice, find_list, find_number

if TYPE_CHECKING:
    import numpy as np

    from atrl.benchmarks.figures import Figure, Units

CHOICE = "multi_choice"

_COLUMNS: Columns = {
    "id": "pid",
    "answer": "answer",
    "question_type": "question_type",
    "answer_type": "answer_type",
    "choices": "choices",
    "precision": "precision",
    "query": "query",
    "metadata": "metadata",
    "image": ["decoded_image", "image"],
}
_CATEGORIES = ("category", "task", "context", "grade", "source", "language")


def normalise(
    extraction: str,
    *,
    question_type: str,
    answer_type: str,
    choices: Sequence[str] = (),
    precision: int | None = None,
    ignore_empty: bool = False,
) -> str | None:
    """An extraction in the form that is compared with the gold, letter by letter; None where it has none.

    - A choice: the first letter in parentheses, if there is one, stands for the whole. A capital letter within the
      options' range is that option; anything else becomes the option at the least Levenshtein distance, of several
      the first. So does an empty extraction, unless `ignore_empty`.
    - integer: ``str(int(float(x)))``; float: ``str(round(float(x), precision))``; list: the text itself.
    """
    if question_type == CHOICE:
        return _choice(extraction.strip(), choices, ignore_empty)
    try:
        return _AS_FREE_FORM[answer_type](extraction, precision)
    except (KeyError, ValueError, OverflowError, TypeError):
        return None


_AS_FREE_FORM = {
    "integer": lambda text, precision: str(int(float(text))),
    "float": lambda text, precision: str(round(float(text), int(precision))),
    "list": lambda text, precision: text,
}


def _choice(text: str, choices: Sequence[str], ignore_empty: bool) -> str | None:
    from rapidfuzz.distance import Levenshtein

    if not choices or (ignore_empty and not text):
        return None
    if letter := re.search(r"\(([a-zA-Z])\)", text):
        text = letter.group(1).upper()
    place = ord(text) - ord("A") if len(text) == 1 else -1
    if 0 <= place < len(choices):
        return choices[place]
    return min(choices, key=lambda choice: Levenshtein.distance(text, choice))


_AS_NUMBER = {"integer": int, "float": float}


def short_answer(response: str, item: Item) -> str | None:
    """The response where the authors take it for the extraction: an option, a number where one is asked for, or
    nothing; None where GPT-4 must look."""
    if not response:
        return ""
    if item.get("question_type") == CHOICE and response in _choices(item):
        return response
    try:
        return str(_AS_NUMBER[item.get("answer_type")](response))
    except (KeyError, ValueError):
        return None


@dataclass(frozen=True, kw_only=True)
class MathVista(Benchmark):
    """Testmini has 1,000 problems; the headline is the share that is right.

    Args:
        ignore_empty: leaves an empty extraction of a choice unanswered, as the authors' ``--ignore_empty_extractions``.
    """

    name = "mathvista"
    headline = "accuracy"
    uses_sympy = True
    required = ("id", "answer", "question_type", "answer_type")
    hub: str = "AI4Math/MathVista"
    split: str | list[str] = "testmini"
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))
    ignore_empty: bool = False

    def prompt(self, item: Item) -> str:
        """The data's own query, which holds the hint for each kind of answer."""
        return str(item.get("query", ""))

    def extract(self, response: str, item: Item) -> str | None:
        """The authors' shortcuts (the response is the answer), then our rules in place of GPT-4."""
        response = response.strip()
        choices = _choices(item)
        if not response:
            return ""
        if response in choices:
            return response
        if item.get("question_type") == CHOICE:
            return find_choice(response, choices)
        kind = item.get("answer_type")
        return find_list(response) if kind == "list" else find_number(response)

    def judge(self, extraction: str | None, item: Item) -> Scored:
        """Right where the normalised extraction and the gold are the same text."""
        prediction = normalise(
            extraction or "",
            question_type=item.get("question_type"),
            answer_type=item.get("answer_type"),
            choices=_choices(item),
            precision=item.get("precision"),
            ignore_empty=self.ignore_empty,
        )
        return Scored(extraction, prediction, float(prediction == item.gold))

    def request(self, item: Item, response: str, replies: tuple[str, ...]) -> JudgeRequest | None:
        """The authors' question for the extraction, unless the response is one already."""
        if replies or short_answer(response, item) is not None:
            return None
        return JudgeRequest(
            f"{EXAMPLES}\n\n{item.get('query', '')}\n\n{response}\n\nExtracted answer: ", max_tokens=1024
        )

    def settle(self, item: Item, response: str, replies: tuple[str, ...]) -> Scored:
        """The rule's verdict on what was extracted."""
        return self.judge(replies[0].strip() if replies else short_answer(response, item), item)

    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """Accuracy, and by kind of question and the categories of `metadata`."""
        score = values["score"]
        figures: list[Figure] = [units.mean("accuracy", score)]
        for role in ("question_type", "answer_type"):
            figures += units.means_by(f"{role}/", score, [item.get(role) for item in items])
        for category in _CATEGORIES:
            labels = [_metadata(item).get(category) for item in items]
            figures += units.means_by(f"{category}/", score, labels)
        skills = sorted({skill for item in items for skill in _skills(item)})
        for skill in skills:
            having = [float(skill in _skills(item)) for item in items]
            figures.append(units.mean(f"skills/{skill}", score, having))
        return figures


def _choices(item: Item) -> list[str]:
    choices = item.get("choices")
    return [] if choices is None else option_list(choices)


def _metadata(item: Item) -> Mapping:
    found = item.get("metadata", {})
    return found if isinstance(found, Mapping) else {}


def _skills(item: Item) -> list[str]:
    return [as_text(skill) for skill in _metadata(item).get("skills") or []]
