"""HallusionBench (Guan et al., CVPR 2024, arXiv 2310.14566): yes-or-no questions about pictures, in pairs.

The figures are those of `utils.py` of https://github.com/tianyi-lab/HallusionBench. There GPT-4 says whether an answer
is correct, incorrect or unclear; here yes and no are read by rules, unless a judge is asked in the authors' words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atrl.benchmarks.base import Benchmark, Columns, Item, Scored, as_text
from atrl.benchmarks.judge import JudgeRequest
from atrl.benchmarks.reading import announced, tail
from atrl.rewards.extract import final_answer

if TYPE_CHECKING:
    import numpy as np

    from atrl.benchmarks.figures import Figure, Units

_YES_NO = re.compile(r"\b(yes|no|true|false)\b", re.IGNORECASE)
_MEANING = {"yes": "1", "true": "1", "1": "1", "no": "0", "false": "0", "0": "0"}
UNCLEAR = "2"
_NAMES = {"1": "yes", "0": "no"}
_PLACE = ("category", "subcategory", "set_id", "figure_id", "question_id")
_COLUMNS: Columns = {
    **{name: name for name in _PLACE},
    "answer": "gt_answer",
    "details": "gt_answer_details",
    "visual_input": "visual_input",
    "question": "question",
    "image": ["image", "filename"],
}
_REQUEST = (
    "Imagine you are an intelligent teacher. Thoroughly read the question, reference answer and the prediction answer "
    "to ensure a clear understanding of the information provided. Assess the correctness of the predictions. If the "
    "prediction answer does not conflict with the reference answer, please generate “correct”. If the prediction "
    "answer conflict with the reference answer, please generate “incorrect”. If the prediction answer is unclear "
    'about the answer, please generate "unclear". \n\n Question:{question}\nReference answer: {details}\n'
    "Prediction answer:{response}\nOutput:"
)


def find_yes_or_no(response: str) -> str | None:
    """``yes`` or ``no``: the first such word (or true, false) of the marked answer, of what is announced, of the
    response; None where there is none."""
    text = tail(response)
    for part in (final_answer(text), announced(text), text):
        if part and (found := _YES_NO.search(part)):
            return _NAMES[_MEANING[found.group().lower()]]
    return None


@dataclass(frozen=True, kw_only=True)
class HallusionBench(Benchmark):
    """Ids are ``<category>_<subcategory>_<set>_<figure>_<question>``. aAcc is the share of questions, fAcc of figures
    all of whose questions are right (questions without a figure left out), qAcc of question pairs, which are the same
    question on all figures of a set. Without a figure an unclear answer is right too."""

    name = "hallusionbench"
    headline = "aAcc"
    required = (*_PLACE, "answer")
    hub: str = "lmms-lab/HallusionBench"
    split: str | list[str] = field(default_factory=lambda: ["image", "non_image"])
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))
    instruction: str = "Please answer yes or no."

    def item_id(self, row: Mapping[str, Any]) -> str:
        """All that names a question."""
        return "_".join(as_text(row[name]) for name in _PLACE)

    def gold(self, row: Mapping[str, Any]) -> str:
        """``yes`` or ``no``."""
        return _NAMES.get(_MEANING.get(as_text(row["answer"]).strip().lower(), ""), "")

    def unit(self, item: Item) -> str:
        """All questions on the figures of a set."""
        return _name(item, "category", "subcategory", "set_id")

    def prompt(self, item: Item) -> str:
        """The question and the instruction."""
        return f"{item.get('question', '')} {self.instruction}"

    def extract(self, response: str, item: Item) -> str | None:
        """Yes or no."""
        return find_yes_or_no(response)

    def judge(self, extraction: str | None, item: Item) -> Scored:
        """Right where it is the gold's; an unclear answer to a supplement question without its figure is right."""
        meaning = _MEANING.get((extraction or "").strip().lower().rstrip("."), UNCLEAR)
        return self._scored(extraction, _NAMES.get(meaning), meaning == _MEANING.get(item.gold), item)

    def request(self, item: Item, response: str, replies: tuple[str, ...]) -> JudgeRequest | None:
        """The authors' question to GPT-4."""
        if replies:
            return None
        details = as_text(item.get("details", item.gold))
        text = _REQUEST.format(question=item.get("question", ""), details=details, response=response)
        return JudgeRequest(text, max_tokens=16)

    def settle(self, item: Item, response: str, replies: tuple[str, ...]) -> Scored:
        """As the authors read the reply: "incorrect" before "correct", anything else is unclear."""
        reply = replies[0].lower()
        verdict = "incorrect" if "incorrect" in reply else "correct" if "correct" in reply else None
        return self._scored(response, verdict, verdict == "correct", item)

    def _scored(self, extraction: str | None, prediction: str | None, right: bool, item: Item) -> Scored:
        excused = prediction is None and _without_figure(item)
        return Scored(extraction, prediction, float(right or excused))

    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """aAcc, fAcc and qAcc, and the share of easy and of hard questions."""
        score = values["score"]
        figure = [
            None if _without_figure(item) else _name(item, "category", "subcategory", "set_id", "figure_id")
            for item in items
        ]
        pair = [_name(item, "category", "subcategory", "set_id", "question_id") for item in items]
        hard = [float(as_text(item.get("visual_input", "")) == "2") for item in items]
        return [
            units.mean("aAcc", score),
            units.ratio("fAcc", *units.all_of(score, figure)),
            units.ratio("qAcc", *units.all_of(score, pair)),
            units.mean("easy", score, [1 - value for value in hard]),
            units.mean("hard", score, hard),
            *units.means_by("category/", score, [item.get("category") for item in items]),
        ]


def _name(item: Item, *roles: str) -> str:
    return "_".join(as_text(item.row[role]) for role in roles)


def _without_figure(item: Item) -> bool:
    return item.row["category"] == "VS" and as_text(item.row["figure_id"]) == "0"
