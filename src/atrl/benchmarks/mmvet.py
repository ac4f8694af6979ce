"""MM-Vet (Yu et al., ICML 2024, arXiv 2308.02490): 218 open questions that need several capabilities at once.

The official score is a language model's, asked in the words of `mm-vet_evaluator.py` of
https://github.com/yuweihao/MM-Vet. Without a judge a rule stands in, and the stamp says so: the share of the gold's
elements (``<AND>``) that the response contains, the best of its alternatives (``<OR>``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atrl.benchmarks.base import Benchmark, Columns, Item, Scored
from atrl.benchmarks.judge import JudgeRequest
from atrl.benchmarks.reading import tail

if TYPE_CHECKING:
    import numpy as np

    from atrl.benchmarks.figures import Figure, Units

_COLUMNS: Columns = {
    "id": ["question_id", "id"],
    "answer": "answer",
    "question": "question",
    "capability": "capability",
    "image": ["image", "imagename"],
}
_REQUEST = (
    "Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. <AND> in "
    "the ground truth means it is totally right only when all elements in the ground truth are present in the "
    "prediction, and <OR> means it is totally right when any one element in the ground truth is present in the "
    "prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 "
    "(totally right). Just complete the last space of the correctness score.\n\n"
    "Question | Ground truth | Prediction | Correctness\n--- | --- | --- | ---\n"
    "What is x in the equation? | -1 <AND> -5 | x = 3 | 0.0\n"
    "What is x in the equation? | -1 <AND> -5 | x = -1 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -5 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -5 or 5 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -1 or x = -5 | 1.0\n"
)
_MARKS = re.compile(r"<(?:AND|OR)>")


def contained(response: str, gold: str) -> float:
    """The share of `gold`'s elements that stand in `response`, whatever their case; the best alternative's."""
    text = response.lower()
    return max(
        sum(element.strip().lower() in text for element in alternative.split("<AND>")) / len(alternative.split("<AND>"))
        for alternative in gold.split("<OR>")
    )


def read_score(reply: str) -> float | None:
    """The score at the beginning of a reply; None where it is no number between 0 and 1."""
    try:
        score = float(reply.strip().split(" ")[0])
    except ValueError:
        return None
    return score if 0 <= score <= 1 else None


@dataclass(frozen=True, kw_only=True)
class MMVet(Benchmark):
    """The headline is the mean score."""

    name = "mmvet"
    headline = "total"
    hub: str = "lmms-lab/MMVet"
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))

    def prompt(self, item: Item) -> str:
        """The question alone, as the authors ask it."""
        return str(item.get("question", ""))

    def extract(self, response: str, item: Item) -> str | None:
        """The response."""
        return tail(response)

    def judge(self, extraction: str | None, item: Item) -> Scored:
        """See `contained`."""
        if not extraction or not extraction.strip():
            return Scored(extraction, None, 0.0)
        return Scored(extraction, extraction, contained(extraction, item.gold))

    def request(self, item: Item, response: str, replies: tuple[str, ...]) -> JudgeRequest | None:
        """The authors' question; asked again, with a reminder, where the reply was no score, up to five times."""
        if len(replies) == 5 or (replies and read_score(replies[-1]) is not None):
            return None
        gold = _MARKS.sub(lambda mark: f" {mark.group()} ", item.gold)
        text = f"{_REQUEST}{' | '.join([str(item.get('question', '')), gold, response, ''])}"
        reminder = "\nPredict the correctness of the answer (digit): " if replies else ""
        return JudgeRequest(text + reminder, max_tokens=3, attempt=len(replies))

    def settle(self, item: Item, response: str, replies: tuple[str, ...]) -> Scored | None:
        """The judge's score; None where no reply was one."""
        score = read_score(replies[-1])
        return None if score is None else Scored(response, response or None, score)

    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """The mean over all questions, by capability, and by the set of capabilities that a question needs."""
        score = values["score"]
        needed = [sorted(map(str, item.get("capability", []))) for item in items]
        figures: list[Figure] = [units.mean("total", score)]
        for name in sorted({name for names in needed for name in names}):
            figures.append(units.mean(f"capability/{name}", score, [float(name in names) for names in needed]))
        return [*figures, *units.means_by("set/", score, ["+".join(names) or None for names in needed])]
