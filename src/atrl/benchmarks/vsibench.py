"""VSI-Bench (Yang et al., CVPR 2025, arXiv 2412.14171): spatial questions about videos of rooms.

The rule is that of `lmms_eval/tasks/vsibench/utils.py` of https://github.com/vision-x-nyu/thinking-in-space, with its
arithmetic in floats: the thresholds are ``linspace(0.5, 0.95, 10)``, though the code means to count eleven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from atrl.benchmarks.base import Benchmark, Columns, Item, Scored, option_list
from atrl.benchmarks.figures import MeanOf
from atrl.benchmarks.reading import find_letter, find_number

if TYPE_CHECKING:
    from atrl.benchmarks.figures import Figure, Units

NUMERIC = ("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation")
CHOICES = ("object_rel_distance", "route_planning", "obj_appearance_order")
DIRECTIONS = tuple(f"object_rel_direction_{level}" for level in ("easy", "medium", "hard"))
THRESHOLDS = np.linspace(0.5, 0.95, 10)
_COLUMNS: Columns = {
    "id": "id",
    "answer": "ground_truth",
    "question_type": "question_type",
    "question": "question",
    "options": "options",
    "dataset": "dataset",
    "scene": "scene_name",
}


def first_word(response: str) -> str:
    """What stands before the first space, without final dots; nothing where the response begins with a space."""
    return response.split(" ")[0].rstrip(".").strip()


def mean_relative_accuracy(prediction: float, target: float) -> float:
    """The share of the ten thresholds θ with ``|prediction - target| / target <= 1 - θ``, all in floats."""
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.float64(abs(prediction - target)) / target
        return float((error <= 1 - THRESHOLDS).mean())


def score_number(text: str, target: str) -> float:
    """The mean relative accuracy of two texts; 0 where one is no number, or the target is zero."""
    try:
        value, wanted = float(text), float(target)
    except ValueError:
        return 0.0
    return mean_relative_accuracy(value, wanted) if wanted else 0.0


@dataclass(frozen=True, kw_only=True)
class VsiBench(Benchmark):
    """5,130 questions; the headline is the unweighted mean of the eight tasks, of which direction is itself the mean of
    its three levels. The same again as ``tolerant``, where the answer is looked for in the whole response: "about 3
    chairs" is nothing to the official rule and 3 to the tolerant one.

    The authors show 32 frames of a video, at equal distances (``rollout.video_frames``).
    """

    name = "vsibench"
    headline = "overall"
    uses_sympy = True
    required = ("id", "answer", "question_type")
    extras = ("tolerant",)
    image_roles = ()
    has_videos = True
    hub: str = "nyu-visionx/VSI-Bench"
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))
    instruction: str = "Answer with the option's letter from the given choices directly."
    number_instruction: str = "Please answer the question using a single word or phrase."
    introduction: str = "These are frames of a video."

    def video(self, item: Item) -> str:
        """Where the data keeps an item's video: ``<dataset>/<scene>.mp4``."""
        return f"{item.get('dataset', '')}/{item.get('scene', '')}.mp4"

    def prompt(self, item: Item) -> str:
        """Introduction, question, options and the instruction of its kind, in lines."""
        question = str(item.get("question", ""))
        if item.get("question_type") in NUMERIC:
            return "\n".join([self.introduction, question, self.number_instruction])
        return "\n".join([self.introduction, question, "Options:", *_options(item), self.instruction])

    def extract(self, response: str, item: Item) -> str | None:
        """The response as it is: the official rule takes its first word, the tolerant one looks further."""
        return response

    def judge(self, extraction: str | None, item: Item) -> Scored:
        """A choice must be the gold's letter, whatever its case; a number scores its mean relative accuracy."""
        if not extraction or not extraction.strip():
            return Scored(extraction, None, 0.0)
        word = first_word(extraction)
        if item.get("question_type") in NUMERIC:
            tolerant = max(score_number(found, item.gold) for found in (word, find_number(extraction)))
            return Scored(extraction, word or None, score_number(word, item.gold), {"tolerant": tolerant})
        official = float(word.lower() == item.gold.lower())
        letter = find_letter(extraction, max(len(_options(item)), 4))
        tolerant = max(official, float((letter or "").lower() == item.gold.lower()))
        return Scored(extraction, word or None, official, {"tolerant": tolerant})

    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """Every task, direction's levels and the overall mean, by the official rule and the tolerant one."""
        kinds = np.array([str(item.get("question_type")) for item in items])
        figures: list[Figure] = []
        for prefix, score in (("", values["score"]), ("tolerant/", values["tolerant"])):
            tasks = (*NUMERIC, *CHOICES)
            figures += [units.mean(prefix + kind, score, kinds == kind) for kind in (*tasks, *DIRECTIONS)]
            direction = f"{prefix}object_rel_direction"
            figures.append(MeanOf(direction, tuple(prefix + level for level in DIRECTIONS)))
            figures.append(MeanOf(f"{prefix}overall", (*(prefix + task for task in tasks), direction)))
        return figures

    def gold(self, row: Mapping[str, Any]) -> str:
        """A letter or a number; the kind of question must be one of VSI-Bench's."""
        if row["question_type"] not in (*NUMERIC, *CHOICES, *DIRECTIONS):
            raise ValueError(f"question_type {row['question_type']!r} is none of VSI-Bench's: correct the row")
        return str(row["answer"])


def _options(item: Item) -> list[str]:
    options = item.get("options")
    return [] if options is None else option_list(options)
