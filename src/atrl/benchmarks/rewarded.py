"""Benchmarks without a rule of their own: the reward that trains also scores, so both mean the same by right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from atrl.benchmarks.base import Benchmark, Columns, Item, Scored
from atrl.data.prompts import IMAGE_MARK, VIDEO_MARK
from atrl.data.rows import Row, RowFormat
from atrl.models.asked import MARK_ANSWER
from atrl.rewards.extract import final_answer, last_line
from atrl.types import Problem

if TYPE_CHECKING:
    import numpy as np

    from atrl.benchmarks.base import Answer
    from atrl.benchmarks.figures import Figure, Units
    from atrl.data.tables import Table
    from atrl.rewards.weighted import WeightedReward

_COLUMNS: Columns = {
    "id": "id",
    "answer": "answer",
    "question": ["problem", "question"],
    "choices": "choices",
    "image": ["images", "image"],
}
_VIDEOS = "videos"
_LEADING = re.compile(rf"(?:\s*{IMAGE_MARK})*")
"""Pictures in front, where they are put anyway."""


@dataclass(frozen=True, kw_only=True)
class RewardedBenchmark(Benchmark):
    """Problems whose answers the configured reward compares; its answer part alone counts, not its format part.

    Args:
        reward: of the group `reward`.
        instruction: how to mark the answer, appended to every question; null in a config is what the checkpoint was
            trained with (see `asked_as_trained`).
    """

    headline = "accuracy"
    required = ("answer",)
    categories: ClassVar[tuple[str, ...]] = ()
    """Roles by which accuracy is also reported."""
    reward: WeightedReward
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))
    instruction: str | None = MARK_ANSWER

    def items(self, table: Table) -> list[Item]:
        """As the base class; rows without an id are named by file and line, choices are answered by their letter."""
        numbered = [
            row if row.values.get("id") is not None else replace(row, values={**row.values, "id": _named(table, row)})
            for row in table.rows
        ]
        columns = table.columns if "id" in table.columns else [*table.columns, "id"]
        items = super().items(replace(table, columns=columns, rows=numbered))
        return [self._lettered(item) for item in items]

    def _lettered(self, item: Item) -> Item:
        question = str(item.get("question", "")).strip()
        bare = question.replace(IMAGE_MARK, "").replace(VIDEO_MARK, "").strip() or "?"
        row = {"problem": bare, "answer": item.gold, "choices": item.get("choices")}
        problem = RowFormat(images_column=None).to_problem(Row(row, item.id, 0), item.id, None)
        prompt = problem.question
        if self.own_marks and IMAGE_MARK in _LEADING.sub("", question, count=1):
            prompt = question + prompt.removeprefix(bare)
        return Item(item.id, problem.answer, {**item.row, "prompt": prompt})

    def read_columns(self) -> list[str]:
        """As the base class; and videos, which are not asked about."""
        return [*super().read_columns(), _VIDEOS]

    def check_asked(self, item: Item, row: Row) -> None:
        """Refuses conversations and videos: they are asked without a benchmark alone."""
        what = "about a video" if row.values.get(_VIDEOS) else None
        what = "a conversation" if isinstance(item.get("question"), list) else what
        if what is not None:
            raise ValueError(
                f"{row.place}: problem {item.id!r} is {what}, which benchmark={self.name} can't ask: score it by "
                "data=jsonl data.path=FILE data.test_fraction=1, without a benchmark"
            )

    def check(self, items: Sequence[Item]) -> None:
        """Raises ValueError, naming them, for answers that the reward can't compare with."""
        self.reward.check([_problem(item) for item in items])

    def prompt(self, item: Item) -> str:
        """Question, choices if there are any, and the instruction; marks where pictures don't just stand in front."""
        return f"{item.row['prompt']} {self.instruction or ''}".strip()

    def extract(self, response: str, item: Item) -> str | None:
        """What the last box (or ``<answer>``) holds, else the last line."""
        found = final_answer(response)
        return last_line(response) or None if found is None else found

    def judge(self, extraction: str | None, item: Item) -> Scored:
        """The reward's verdict on one boxed answer."""
        return self._score([_boxed(extraction or "")], [extraction], [item])[0]

    def score(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Scored]:
        """The reward's verdicts on whole responses, or on recorded extractions as if they stood in a box."""
        texts, shown = [], []
        for item, answer in pairs:
            extraction = None if answer.extraction is None else self.recorded(answer.extraction)
            texts.append(_boxed(extraction) if extraction is not None else answer.response or "")
            shown.append(extraction if extraction is not None else self.extract(answer.response or "", item))
        return self._score(texts, shown, [item for item, _ in pairs])

    def _score(self, texts: Sequence[str], shown: Sequence[str | None], items: Sequence[Item]) -> list[Scored]:
        part = self.reward.parts[self.reward.answer_part]
        verdicts = part.score(texts, [_problem(item) for item in items])
        return [
            Scored(extraction, (extraction or "") if verdict.parsed else None, float(verdict.value))
            for extraction, verdict in zip(shown, verdicts, strict=True)
        ]

    def close(self) -> None:
        """Stop the reward's worker processes."""
        self.reward.close()

    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """Accuracy, and by category where the data has some."""
        score = values["score"]
        figures: list[Figure] = [units.mean("accuracy", score)]
        for role in self.categories:
            figures += units.means_by(f"{role}/", score, [item.get(role) for item in items])
        return figures


def _named(table: Table, row: Any) -> str:
    return f"{table.stem}:{row.number}"


def _problem(item: Item) -> Problem:
    return Problem(id=item.id, question=item.row["prompt"], answer=item.gold)


def _boxed(extraction: str) -> str:
    return f"\\boxed{{{extraction}}}"
