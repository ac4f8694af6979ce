"""Recorded answers: JSONL (or JSON, Parquet) with an id and a response, or an extraction that somebody made of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from atrl.benchmarks.base import Answer, as_text
from atrl.data.rows import Row
from atrl.data.tables import read_file

Missing = Literal["refuse", "skip"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """The answers to a benchmark's problems, in the order of the file."""

    answers: list[Answer]
    left_out: int
    """Answers to problems that the data does not hold."""
    unanswered: list[str]
    """Ids of problems without an answer."""


def read_answers(
    path: Path, ids: Sequence[str], *, extract_again: bool = False, missing: Missing = "refuse"
) -> Recorded:
    """The answers in a file, several with one id being several samples.

    Args:
        path: rows of ``id`` and ``response`` or ``extraction``; where both are there the extraction counts.
        ids: of the benchmark's problems. Answers to others are left out, and counted.
        extract_again: count the response instead, even where an extraction is recorded.
        missing: what to do about problems without an answer.

    Raises:
        ValueError: if the file can't be read, a row lacks id or answer, no answer is to one of `ids`, or problems
            have no answer and `missing` is "refuse".
    """
    table = read_file(path, "predictions", ("id", "response", "extraction"), name_column="id")
    if "id" not in table.columns:
        raise ValueError(
            f"predictions: {path} has no column 'id'. Its columns are {', '.join(table.columns)}: name each answer's "
            "problem in 'id'"
        )
    wanted = set(ids)
    seen: Counter[str] = Counter()
    answers, left_out = [], 0
    for row in table.rows:
        answer = _answer(row, extract_again, seen)
        seen[answer.id] += 1
        if answer.id in wanted:
            answers.append(answer)
        else:
            left_out += 1
    if not answers:
        raise ValueError(
            f"predictions: none of the {left_out} ids in {path} (as {next(iter(seen), '')!r}) is a problem's (as "
            f"{next(iter(ids), '')!r}): check that data and answers are of the same benchmark"
        )
    unanswered = [item_id for item_id in ids if item_id not in seen]
    if unanswered and missing == "refuse":
        raise ValueError(
            f"predictions: {len(unanswered)} of {len(ids)} problems have no answer in {path}, the first is "
            f"{unanswered[0]!r}: add them, or set missing=skip to score the others alone"
        )
    return Recorded(answers, left_out, unanswered)


def _answer(row: Row, extract_again: bool, seen: Counter[str]) -> Answer:
    answer_id = row.values.get("id")
    if not isinstance(answer_id, str | int | float) or isinstance(answer_id, bool):
        raise ValueError(f"{row.place}: id {answer_id!r} names no problem: write the benchmark's own id")
    name = as_text(answer_id)
    response, extraction = row.values.get("response"), row.values.get("extraction")
    if "response" not in row.values and "extraction" not in row.values:
        raise ValueError(f"{row.place}: there is neither a response nor an extraction: write one of them")
    if response is not None and not isinstance(response, str):
        raise ValueError(f"{row.place}: the response must be text, got {repr(response)[:80]}: correct it")
    if extract_again and response is not None:
        extraction = None
    return Answer(id=name, response=response, extraction=extraction, sample=seen[name])


def digest(answers: Sequence[Answer]) -> str:
    """SHA-256 of the answers themselves."""
    total = hashlib.sha256()
    for answer in answers:
        content: Any = (answer.id, answer.sample, answer.response, answer.extraction)
        total.update(repr(content).encode("utf-8", "surrogatepass") + b"\n")
    return total.hexdigest()
