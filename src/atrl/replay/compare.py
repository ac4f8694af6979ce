"""What was recorded of a step against what came out when it was computed again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from atrl.replay.step_file import RecordedStep

COMPUTED = ("rewards", "advantages", "weights", "logprobs", "losses")
"""Tensors that are computed from the recorded responses."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one kind of values is off."""

    name: str
    values: int
    differ: int
    """How many are not the same to the bit."""
    largest: float
    """Absolute; infinite where there are other values than were recorded, or one is not finite."""
    recorded: float | str = ""
    again: float | str = ""
    place: str = ""
    """Both, and where, of the largest difference."""

    def within(self, tolerance: float) -> bool:
        """Whether nothing is further off than `tolerance`."""
        return self.largest <= tolerance


def compare_steps(recorded: RecordedStep, again: RecordedStep) -> list[Difference]:
    """Everything that is computed from a step's responses, tensor by tensor and metric by metric."""
    found = [
        _difference(name, recorded.tensors[name].numpy(), again.tensors[name].numpy(), recorded) for name in COMPUTED
    ]
    for name, value in recorded.metrics.items():
        found.append(_difference(name, np.array([value]), np.array([again.metrics[name]]), None))
    return found


def compare_lists(
    name: str, recorded: Sequence[Sequence[object]], again: Sequence[Sequence[object]], places: Sequence[str]
) -> Difference:
    """Lists that are the same or not, as ids are: one list a response, named by `places`."""
    off = [
        (place, one, other) for place, one, other in zip(places, recorded, again, strict=False) if [*one] != [*other]
    ]
    missing = abs(len(recorded) - len(again))
    count = sum(len(entry) for entry in recorded)
    if not off:
        return Difference(name, count, missing, np.inf if missing else 0.0, place="other responses" if missing else "")
    place, one, other = off[0]
    index = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    if index is None:
        shown = f"{len(one)} tokens", f"{len(other)} tokens"
    else:
        shown, place = (str(one[index]), str(other[index])), f"{place}, token {index}"
    return Difference(name, count, missing + len(off), np.inf, *shown, place)


def compare_with_text(
    run: Path, number: int, recorded: RecordedStep, tokenizer: PreTrainedTokenizerBase
) -> list[Difference]:
    """The responses and rewards of `rollouts.jsonl`, where there is one, against the recorded ids and rewards."""
    from atrl.credit.reading import token_pieces

    path = run / "rollouts.jsonl"
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8") as lines:
            rows = [row for row in map(json.loads, lines) if row["step"] == number]
        texts, totals = [row["tokens"] for row in rows], [[row["reward"]] for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what a run writes ({error!r}): move it away to compare without it") from None
    trained = recorded.prompts[: recorded.trained]
    rollouts = recorded.rollouts()
    ids = [rollout.token_ids for key, _ in trained for rollout in rollouts[key]]
    places = [f"{key}, sample {sample}" for key, size in trained for sample in range(size)]
    pieces = [token_pieces(tokens, tokenizer) for tokens in ids]
    rewards = [[round(value, 6)] for value in recorded.tensors["rewards"][: len(ids)].tolist()]
    return [
        compare_lists("tokens (rollouts.jsonl)", texts, pieces, places),
        compare_lists("rewards (rollouts.jsonl)", totals, rewards, places),
    ]


def table(differences: Sequence[Difference]) -> list[str]:
    """Lines for the terminal."""
    rows = [("", "values", "differ", "largest", "recorded", "again", "where")]
    for entry in differences:
        both = (_shown(entry.recorded), _shown(entry.again), entry.place) if entry.differ else ("", "", "")
        rows.append((entry.name, str(entry.values), str(entry.differ), f"{entry.largest:.3g}", *both))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells, row[-1]]).rstrip())
    return lines


def _difference(name: str, recorded: np.ndarray, again: np.ndarray, step: RecordedStep | None) -> Difference:
    if recorded.shape != again.shape:
        sizes = f"{recorded.size} values", f"{again.size} values"
        return Difference(name, recorded.size, max(recorded.size, again.size), np.inf, *sizes)
    same = (recorded == again) | (np.isnan(recorded) & np.isnan(again))
    with np.errstate(invalid="ignore"):
        gap = np.abs(recorded.astype(np.float64) - again.astype(np.float64))
    gap = np.where(same, 0.0, np.where(np.isfinite(gap), gap, np.inf))
    if same.all():
        return Difference(name, recorded.size, 0, 0.0)
    worst = int(gap.argmax())
    place = "" if step is None else step.place(name, worst)
    return Difference(
        name, recorded.size, int((~same).sum()), float(gap[worst]), float(recorded[worst]), float(again[worst]), place
    )


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.9g}"
