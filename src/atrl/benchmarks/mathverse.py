"""MathVerse (Zhang et al., ECCV 2024, arXiv 2403.14624): problems in five versions, from all text to all picture.

Officially a language model extracts the answer and another call compares it, in the words of `evaluation/prompts.py`
of https://github.com/ZrrSkywalker/MathVerse. Without a judge our rules do both, and the stamp says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atrl.benchmarks.base import Benchmark, Columns, Item, Scored
from atrl.benchmarks.judge import JudgeRequest
from atrl.benchmarks.latex_value import NoValue, latex_value
from atrl.benchmarks.reading import announced, find_letter, letter_of, tail
from atrl.rewards.exact import normalise
from atrl.rewards.extract import final_answer, last_line
from atrl.rewards.notation import as_text

if TYPE_CHECKING:
    import numpy as np

    from atrl.benchmarks.figures import Figure, Units

VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
"""The five of the headline; the data may also hold "Text Only"."""
_CHOICE = "multi-choice"
_COLUMNS: Columns = {
    "id": "sample_index",
    "answer": "answer",
    "question": ["question_for_eval", "question"],
    "query": "query_wo",
    "question_type": "question_type",
    "version": "problem_version",
    "metadata": "metadata",
    "image": "image",
}
_EXTRACT = (
    "I am providing you a response from a model to a math problem, termed 'Model Response'. You should extract the "
    "answer from the response as 'Extracted Answer'. Directly output the extracted answer with no explanation.\n\n"
    "1.\nModel response: 'Rounded to two decimal places, the perimeter of the sector is approximately:\n\n(-2, 1)'\n"
    "Extracted Answer: (-2, 1)\n\n"
    "2.\nModel response: 'As it stands, I cannot provide the correct option letter because there isn't enough "
    "information to solve for 'y'.'\nExtracted Answer: null\n\n"
    "3.\nModel response: '{response}'\nExtracted Answer: "
)
_COMPARE = (
    "Below are two answers to a math question. Question is [Question], [Standard Answer] is the standard answer to the "
    "question, and [Model_answer] is the answer extracted from a model's output to this question.  Determine whether "
    "these two answers are consistent.\nPlease note that only when the [Model_answer] completely matches the [Standard "
    "Answer] means they are consistent. For non-multiple-choice questions, if the meaning is expressed in the same "
    "way, it is also considered consistent, for example, 0.5m and 50cm.\nIf they are consistent, Judement is 1; if "
    "they are different, Judement is 0.\n\n[Question]: {question}\n[Standard Answer]: {gold}\n"
    "[Model_answer] : {extraction}\nJudgement: "
)


@dataclass(frozen=True, kw_only=True)
class MathVerse(Benchmark):
    """Testmini has 788 problems in each version; the headline is the share that is right over the five versions,
    whose rows are not tied together: intervals draw each by itself."""

    name = "mathverse"
    headline = "accuracy"
    uses_sympy = True
    hub: str = "AI4Math/MathVerse"
    config: str | list[str] | None = "testmini"
    split: str | list[str] = "testmini"
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))

    def prompt(self, item: Item) -> str:
        """The data's query for a direct answer (``query_wo``)."""
        return str(item.get("query", item.get("question", "")))

    def extract(self, response: str, item: Item) -> str | None:
        """A choice's letter; else the marked answer, what is announced, or the last line."""
        if item.get("question_type") == _CHOICE:
            return find_letter(response, 8)
        text = tail(response)
        return final_answer(text) or announced(text) or last_line(text) or None

    def judge(self, extraction: str | None, item: Item) -> Scored:
        """The gold's letter, the same text, or the same value to two places."""
        if not extraction or not extraction.strip():
            return Scored(extraction, None, 0.0)
        if item.get("question_type") == _CHOICE:
            letter = letter_of(extraction)
            return Scored(extraction, letter, float(letter == item.gold.strip().upper()))
        return Scored(extraction, extraction, float(_equal(item.gold, extraction)))

    def request(self, item: Item, response: str, replies: tuple[str, ...]) -> JudgeRequest | None:
        """First the extraction, then the verdict, again for as long as it is neither 0 nor 1, at most five times."""
        if not replies:
            return JudgeRequest(_EXTRACT.format(response=response))
        if len(replies) == 6 or (len(replies) > 1 and _judgement(replies[-1]) is not None):
            return None
        text = _COMPARE.format(question=item.get("question", ""), gold=item.gold, extraction=replies[0])
        return JudgeRequest(text, max_tokens=8, attempt=len(replies) - 1)

    def settle(self, item: Item, response: str, replies: tuple[str, ...]) -> Scored | None:
        """The judge's verdict; None where it gave none."""
        verdict = _judgement(replies[-1])
        return None if verdict is None else Scored(replies[0], replies[0], verdict)

    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """Accuracy over the five versions, each version's, and by subject."""
        score = values["score"]
        versions = [item.get("version") for item in items]
        subjects = [(item.get("metadata") or {}).get("subject") for item in items]
        counted = [float(version in VERSIONS or version is None) for version in versions]
        return [
            units.mean("accuracy", score, counted),
            *units.means_by("version/", score, versions),
            *units.means_by("subject/", score, subjects),
        ]


def _judgement(reply: str) -> float | None:
    text = reply.replace("Judgement:", "").strip()
    return float(text) if text in ("0", "1") else None


def _equal(gold: str, answer: str) -> bool:
    if normalise(as_text(gold)) == normalise(as_text(answer)):
        return True
    try:
        return round(latex_value(_bare(gold)), 2) == round(latex_value(_bare(answer)), 2)
    except NoValue:
        return False


def _bare(text: str) -> str:
    text = text.strip().strip("$").strip().rpartition("=")[2]
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|°|\\text\s*\{[^{}]*\}|(?<=\d) ?degrees?\b", "", text)
    return re.sub(r"√\s*\{?(\d+)\}?", r"\\sqrt{\1}", text).rstrip(". ")
