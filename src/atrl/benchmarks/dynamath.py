"""DynaMath (Zou et al., ICLR 2025, arXiv 2411.00836): 501 questions, each drawn 10 times with other numbers.

The rule is that of `evaluation/gpt4o/gpt_4o_json_eval.py` of https://github.com/DynaMath/DynaMath.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from atrl.benchmarks.base import Benchmark, Columns, Item, Scored, as_text
from atrl.benchmarks.reading import announced, find_letter, find_number, tail
from atrl.rewards.extract import final_answer

if TYPE_CHECKING:
    from atrl.benchmarks.figures import Figure, Units

_SHORT = re.compile(r'"short[ _]answer"\s*:\s*("(?:[^"\\]|\\.){0,1000}"|[^\s,}"]{1,100})')
_COLUMNS: Columns = {
    "id": ["qid", "question_id", "id"],
    "variant": ["varid", "variant", "hub_split"],
    "answer": ["ground_truth", "answer"],
    "answer_type": "answer_type",
    "question": "question",
    "subject": "subject",
    "level": ["knowledge_level", "level"],
    "image": ["decoded_image", "image"],
}
_JSON_GUIDE = (
    "## Answer Instruction Please provide an answer to the question outlined above. Your response should adhere to "
    "the following JSON format, which includes two keys: 'solution' and 'short answer'. The 'solution' key can contain "
    "detailed steps needed to solve the question, and the 'short answer' key should provide a concise response. {kind}"
    '\n\nExample of expected JSON response format:\n\n{{\n    "solution": "[Detailed step-by-step explanation]",\n'
    '    "short answer": "[Concise Answer]"\n}}'
)
_KINDS = {
    "multiple choice": (
        "Provide the corresponding choice option in the 'short answer' key, such as 'A', 'B', 'C', or 'D'."
    ),
    "float": "Format the answer as a three-digit floating-point number and provide it in the 'short answer' key.",
    "text": "Float numbers in the answer should be formatted as three-digit floating-point numbers.",
}


def right(answer: str, gold: str, answer_type: str) -> bool:
    """Whether a short answer is right.

    A float (its first word, ``2π`` included) must be within 0.001 of the gold. A letter must be the gold's, of a
    longer answer the gold must be in its first three characters. Of other answers the gold must be somewhere in it.
    """
    if answer_type == "float":
        value, wanted = number(answer), number(gold)
        return value is not None and wanted is not None and abs(value - wanted) <= 0.001
    if answer_type == "multiple choice":
        return answer == gold if len(answer) == 1 else bool(gold) and gold in answer[:3]
    return gold in answer


def number(text: str) -> float | None:
    """The first word as a number, a factor of π where it is followed by one; None where it is none."""
    word = text if text.isdigit() else text.split(" ")[0]
    head, pi, _ = word.partition("π")
    try:
        return float(head) * (math.pi if pi else 1.0)
    except ValueError:
        return None


def find_short_answer(response: str, answer_type: str) -> str:
    """The value of the key ``short answer`` of the JSON that was asked for, else the answer by our general rules."""
    text = tail(response)
    if named := _SHORT.findall(text):
        return _unquoted(named[-1])
    if answer_type == "float":
        return find_number(text)
    if answer_type == "multiple choice":
        return find_letter(text, 26) or ""
    return final_answer(text) or announced(text) or text.strip()


def _unquoted(value: str) -> str:
    try:
        return as_text(json.loads(value, strict=False)).strip()
    except ValueError:
        return value.strip('"').strip()


@dataclass(frozen=True, kw_only=True)
class DynaMath(Benchmark):
    """Ids are ``<question>/<variant>`` where the data numbers variants. The headline is the worst case: the share of
    questions of which every variant is right. Robustness is worst case over average."""

    name = "dynamath"
    headline = "worst_case"
    uses_sympy = True
    required = ("id", "answer", "answer_type")
    hub: str = "DynaMath/DynaMath_Sample"
    split: str | list[str] = field(default_factory=lambda: [f"sample_variant{number}" for number in range(1, 11)])
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))

    def item_id(self, row: Mapping[str, Any]) -> str:
        """Question and variant."""
        return as_text(row["id"]) + (f"/{_variant(row)}" if "variant" in row else "")

    def unit(self, item: Item) -> str:
        """All variants of a question."""
        return as_text(item.row["id"])

    def prompt(self, item: Item) -> str:
        """The question and the form that the answer must have."""
        kind = _KINDS.get(item.get("answer_type"), _KINDS["text"])
        return f"## Question\n {item.get('question', '')}{_JSON_GUIDE.format(kind=kind)}"

    def extract(self, response: str, item: Item) -> str | None:
        """The short answer."""
        return find_short_answer(response, item.get("answer_type")) if response.strip() else None

    def judge(self, extraction: str | None, item: Item) -> Scored:
        """See `right`."""
        if not extraction or (item.get("answer_type") == "float" and number(extraction) is None):
            return Scored(extraction, None, 0.0)
        return Scored(extraction, extraction, float(right(extraction, item.gold, item.get("answer_type"))))

    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """Average and worst case, both also by subject and by level, and robustness."""
        worst, weight, average = _by_question([self.unit(item) for item in items], values["score"])
        figures: list[Figure] = [
            units.ratio("worst_case", worst, weight),
            units.ratio("average", average, weight),
            units.ratio("robustness", worst, average),
        ]
        for role in ("subject", "level"):
            labels = np.array([str(item.get(role, "")) for item in items])
            for label in sorted(set(labels) - {""}):
                there = labels == label
                figures += [
                    units.ratio(f"average/{role}/{label}", average * there, weight * there),
                    units.ratio(f"worst_case/{role}/{label}", worst * there, weight * there),
                ]
        return figures


def _by_question(questions: Sequence[str], score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[items] worst case, weight and average of each question, written on its first item; 0 elsewhere."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        members[question].append(index)
    worst, weight, average = (np.zeros(len(questions)) for _ in range(3))
    for indices in members.values():
        first, scores = indices[0], score[indices]
        worst[first], weight[first], average[first] = float(scores.min()), 1.0, scores.mean()
    return worst, weight, average


def _variant(row: Mapping[str, Any]) -> str:
    return as_text(row["variant"]).removeprefix("sample_variant")
