"""What a benchmark's answers are worth without the right pictures: figures of the same problems, three times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atrl.benchmarks.base import Answer, Item
from atrl.evaluation.grounding import sides_in_words

if TYPE_CHECKING:
    from atrl.benchmarks.scoring import Record


@dataclass(frozen=True, slots=True)
class ControlAnswers:
    """What was answered without the right pictures."""

    ids: list[str]
    """Of the problems that were asked in both ways, and with their own pictures: a part of the benchmark."""
    answers: dict[str, list[Answer]]
    """"blank" and "swapped": the answers to these problems."""
    left_out: int
    """The benchmark's other problems: without a picture, without a partner, or too long with its pictures."""
    same_answer: int
    """Problems among `ids` whose partner has the same gold answer."""


def on_items(
    controls: ControlAnswers, items: Sequence[Item], records: Sequence[Record]
) -> tuple[list[Item], list[Record]]:
    """The items that the controls are of, and their verdicts with their own pictures."""
    kept = set(controls.ids)
    return [item for item in items if item.id in kept], [record for record in records if record.id in kept]


def grounding_of(results: Mapping[str, Mapping[str, Any]], controls: ControlAnswers) -> dict[str, Any]:
    """The part of `evaluation.json` that is of grounding: the headline of each side, in per cent.

    Args:
        results: "true", "blank" and "swapped", as `summarise` makes them, on the same items.
    """
    sides = {
        name: {
            "value": result["headline"]["value"],
            "ci95": result["headline"]["ci95"],
            "right": result["right"],
            "samples": result["samples"],
        }
        for name, result in results.items()
    }
    return {
        "headline": results["true"]["headline"]["name"],
        "problems": len(controls.ids),
        **sides,
        "left_out": controls.left_out,
        "same_answer": controls.same_answer,
    }


def grounding_lines(found: Mapping[str, Any]) -> list[str]:
    """The three headlines in lines."""
    left_out = f", {found['left_out']} more left out" if found["left_out"] else ""
    lines = [f"  {found['headline']} without the right pictures, on {found['problems']} problems{left_out}:"]
    for name, what in sides_in_words(found["same_answer"]).items():
        side = found[name]
        low, high = side["ci95"]
        figures = "  –" if side["value"] is None else f"{side['value']:6.2f}  [{low:.2f}, {high:.2f}]"
        lines.append(f"    {name:30} {figures}  {what}")
    return lines
