"""Moving markers: short videos of two markers on a grid, and questions that only one moment of the video answers.

Each second both markers stand still, then each tries a step left, right, up or down, and stays where that would leave
the grid. So every place is about as likely at every second, and a question says nothing of its answer. It grows
dark meanwhile, by which a model can tell the seconds from each other that can't yet tell them by their positions. The
splits have no pair of ways in common, not even with the markers exchanged.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from atrl.data.base import Baseline, Split, uniform_hash
from atrl.data.generated import SHARES, GeneratedProblems
from atrl.data.geometry import Point, draw
from atrl.types import Problem, ReadingRule, Video

if TYPE_CHECKING:
    from PIL.Image import Image

Kind = Literal["where", "move"]
Way = tuple[Point, ...]
"""Where a marker stands at each second."""

STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, 1), "down": (0, -1)}
STAYED = "stayed"
_DUSK = 192
"""Brightness of the last second's white; the first second's is 255."""
_QUESTIONS: dict[Kind, tuple[str, ...]] = {
    "where": ("Where is {asked} at second {at}?", "What are the coordinates of {asked} at second {at}?"),
    "move": (
        "Which way does {asked} move from second {at} to second {next}?",
        "Where does {asked} go after second {at}: left, right, up or down, or has it stayed?",
    ),
}
_OPENERS = ("", "Let us look at the video. ", "First read the grid: ", "On the grid, ")
_PLACES = ("{asked} is at ({x},{y}) at second {at}", "at second {at} {asked} lies at ({x},{y})")
_CLOSERS = ("The answer is ", "So the answer is ", "Answer: ")


@dataclass(frozen=True, slots=True)
class Scene:
    """A problem without its pictures."""

    kind: Kind
    ways: dict[str, Way]
    """By marker, A and B."""
    asked: str
    at: int
    """The second that is asked for; with `move` the one before the step."""

    @property
    def answer(self) -> str:
        """A place "(x,y)", a direction, or that the marker stayed."""
        way = self.ways[self.asked]
        x, y = way[self.at]
        if self.kind == "where":
            return f"({x},{y})"
        step = (way[self.at + 1][0] - x, way[self.at + 1][1] - y)
        return {(0, 0): STAYED, **{move: name for name, move in STEPS.items()}}[step]


@dataclass(frozen=True, kw_only=True)
class MovingMarkersProblems:
    """A seeded generator of short videos and questions about them.

    Args:
        grid: markers stand on integer coordinates 0 … grid-1, the origin at the bottom left.
        cell_pixels: side of a grid cell; a frame is ``grid * cell_pixels`` pixels wide and high.
        seconds: length of a video.
        fps: frames per second; all frames of a second are the same.
        kinds: what is asked: ``where`` a marker is at a second, which way it will ``move`` then.
        train_size, selection_size, test_size: problems in each split.
        seed: of the problems; the split of the ways does not depend on it.
    """

    grid: int = 7
    cell_pixels: int = 16
    seconds: int = 4
    fps: int = 2
    kinds: Sequence[Kind] = ("where", "move")
    train_size: int = 32768
    selection_size: int = 256
    test_size: int = 512
    seed: int = 0

    name = "moving_markers"

    def __post_init__(self) -> None:
        for key, low, high in (("grid", 2, 10), ("seconds", 2, 10), ("fps", 1, 60), ("cell_pixels", 8, 256)):
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"data.{key} must be {low} … {high}, got {getattr(self, key)}")
        if not self.kinds or not set(self.kinds) <= set(_QUESTIONS):
            raise ValueError(f"data.kinds must name at least one of {', '.join(_QUESTIONS)}, got {list(self.kinds)}")

    def load(self, split: Split) -> Sequence[Problem]:
        """The problems of `split`, the same for the same seed, on every machine and for every world size."""
        return GeneratedProblems(self.problem, split, getattr(self, f"{split}_size"))

    def baseline(self) -> Baseline:
        """What the best fixed answer to each kind of question gets right on the test split, chosen on that split."""
        answers: dict[str, Counter[str]] = {kind: Counter() for kind in self.kinds}
        for index in range(self.test_size):
            scene = self.scene(f"test-{index}")
            answers[scene.kind][scene.answer] += 1
        right = sum(max(counts.values(), default=0) for counts in answers.values())
        description = "the most frequent answer to each kind of question, without the video"
        return Baseline(description=description, accuracy=right / self.test_size, problems=self.test_size)

    def scene(self, problem_id: str) -> Scene:
        """What problem "split-number" shows and asks; a function of seed and id alone."""
        split, rng = problem_id.split("-")[0], random.Random(f"{self.seed}/{problem_id}")
        kind = rng.choice(tuple(self.kinds))
        ways = self._ways(rng)
        while split_of(ways) != split:
            ways = self._ways(rng)
        at = rng.randrange(self.seconds - (kind == "move"))
        return Scene(kind, dict(zip("AB", ways, strict=True)), rng.choice("AB"), at)

    def problem(self, problem_id: str) -> Problem:
        """The problem with this id, its frames drawn."""
        scene, rng = self.scene(problem_id), random.Random(f"words/{self.seed}/{problem_id}")
        question = rng.choice(_QUESTIONS[scene.kind]).format(asked=scene.asked, at=scene.at, next=scene.at + 1)
        moments = [self._moment(scene, second) for second in range(self.seconds)]
        return Problem(
            id=problem_id,
            question="<video>" + question,
            answer=scene.answer,
            videos=(Video(tuple(moment for moment in moments for _ in range(self.fps)), fps=float(self.fps)),),
            target=worked_answer(scene, rng),
            reading=ReadingRule(r"\((\d),(\d)\)", count=2 if scene.kind == "move" else 1),
        )

    def _moment(self, scene: Scene, second: int) -> Image:
        from PIL import Image, ImageChops

        places = {marker: way[second] for marker, way in scene.ways.items()}
        picture = draw(places, self.grid, self.cell_pixels)
        light = round(255 - (255 - _DUSK) * second / (self.seconds - 1))
        return ImageChops.multiply(picture, Image.new("RGB", picture.size, (light,) * 3))

    def _ways(self, rng: random.Random) -> tuple[Way, Way]:
        """Two ways that are never at one place at the same time."""
        while True:
            ways = walk(self.grid, self.seconds, rng), walk(self.grid, self.seconds, rng)
            if all(a != b for a, b in zip(*ways, strict=True)):
                return ways


def walk(grid: int, seconds: int, rng: random.Random) -> Way:
    """A uniform start, and each second a uniform step that is left out where it would leave the grid.

    The chance to go from one place to another equals that to go back, so every place stays as likely as at the start.
    """
    way = [(rng.randrange(grid), rng.randrange(grid))]
    for _ in range(seconds - 1):
        step = rng.choice(tuple(STEPS.values()))
        x, y = way[-1][0] + step[0], way[-1][1] + step[1]
        way.append((x, y) if 0 <= x < grid and 0 <= y < grid else way[-1])
    return tuple(way)


def split_of(ways: tuple[Way, Way]) -> Split:
    """The split that an unordered pair of ways belongs to."""
    share = uniform_hash(f"ways/{sorted(ways)}", 0)
    return next(split for split, (low, high) in SHARES.items() if low <= share < high)


def worked_answer(scene: Scene, rng: random.Random) -> str:
    r"""A response that states what it reads off the video and ends in ``\boxed{answer}``."""
    way = scene.ways[scene.asked]
    moments = (scene.at, scene.at + 1) if scene.kind == "move" else (scene.at,)
    place = rng.choice(_PLACES)
    reading = " and ".join(place.format(asked=scene.asked, at=at, x=way[at][0], y=way[at][1]) for at in moments)
    opener = rng.choice(_OPENERS)
    if not opener.endswith((", ", ": ")):
        reading = reading[0].upper() + reading[1:]
    return f"{opener}{reading}. {rng.choice(_CLOSERS)}\\boxed{{{scene.answer}}}"
