"""Coordinate geometry: pictures of two points on a grid, and questions that only the picture answers.

Both points of a problem are drawn, whatever it asks. The splits have no pair of points in common, not even with
the letters exchanged, so that an accuracy on `test` measures reading and not recall.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from atrl.data import wording
from atrl.data.base import Split
from atrl.data.generated import SHARES, GeneratedProblems
from atrl.types import Problem, ReadingRule

if TYPE_CHECKING:
    from PIL.Image import Image

Point = tuple[int, int]
Kind = Literal["read", "midpoint", "distance", "slope"]

_COLOURS = {"A": "#d62728", "B": "#1f77b4"}


@dataclass(frozen=True, kw_only=True)
class GeometryProblems:
    """A seeded generator of coordinate-geometry problems.

    Args:
        grid: points lie on integer coordinates 0 … grid-1, the origin at the bottom left.
        cell_pixels: side of a grid cell; a picture is ``grid * cell_pixels`` pixels wide and high.
        kinds: what is asked.
        train_size, selection_size, test_size: problems in each split.
        slip_rate: chance for each coordinate in a worked answer of the training split to be misread, by one grid line
            (two where a midpoint is asked, which stays on the grid). The rest of the worked answer follows from what
            was read, as an annotator's would; the verifiable answer of the problem is never touched.
        filler_sentences: so many sentences of every worked answer are true of each picture and of no use to the answer;
            they make a response long whose reward hangs on few tokens.
        seed: of the problems; the split of the point pairs does not depend on it.
    """

    grid: int = 7
    cell_pixels: int = 16
    kinds: Sequence[Kind] = ("read", "midpoint", "distance", "slope")
    train_size: int = 32768
    selection_size: int = 256
    test_size: int = 512
    slip_rate: float = 0.0
    filler_sentences: int = 0
    seed: int = 0

    name = "geometry"

    def __post_init__(self) -> None:
        if not 2 <= self.grid <= 10:
            raise ValueError(f"data.grid must be 2 … 10 (coordinates are single digits), got {self.grid}")
        if not 0 <= self.slip_rate < 1:
            raise ValueError(f"data.slip_rate must be in [0, 1), got {self.slip_rate}: 0 makes no mistakes")
        wording.fillers(self.filler_sentences, random.Random(0))  # refuses what is too many
        if not self.kinds:
            raise ValueError("data.kinds is empty: name at least one of read, midpoint, distance, slope")
        if "midpoint" in self.kinds and not all(midpoint_pairs(split_pairs(self.grid, split)) for split in SHARES):
            raise ValueError(
                f"data.grid={self.grid} is too small for data.kinds=[midpoint]: a split would have no pair of points "
                "with an integer midpoint; set data.grid to 3 or more"
            )

    def load(self, split: Split) -> Sequence[Problem]:
        """The problems of `split`, the same for the same seed, on every machine and for every world size."""
        make = partial(self.problem, pairs=split_pairs(self.grid, split))
        return GeneratedProblems(make, split, getattr(self, f"{split}_size"))

    def baseline(self) -> None:
        """No blind baseline is given: the controls of `experiments/` measure it."""
        return None

    def problem(self, problem_id: str, pairs: Sequence[tuple[Point, Point]]) -> Problem:
        """The problem with this id, its points drawn from `pairs`; a function of seed and id alone."""
        rng = random.Random(f"{self.seed}/{problem_id}")
        kind = rng.choice(tuple(self.kinds))
        a, b = rng.choice(midpoint_pairs(pairs) if kind == "midpoint" else pairs)
        if rng.random() < 0.5:
            a, b = b, a
        asked = rng.choice("AB")
        filler = wording.fillers(self.filler_sentences, random.Random(f"filler/{self.seed}/{problem_id}"))
        seen_a, seen_b = (self._read(point, kind, problem_id, letter) for letter, point in (("A", a), ("B", b)))
        return Problem(
            id=problem_id,
            question="<image>" + wording.question(kind, asked, rng),
            answer=solve(kind, a, b, asked),
            images=(draw({"A": a, "B": b}, self.grid, self.cell_pixels),),
            target=wording.worked_answer(kind, seen_a, seen_b, asked, solve(kind, seen_a, seen_b, asked), rng, filler),
            reading=ReadingRule(r"\((\d),(\d)\)", count=1 if kind == "read" else 2),
        )

    def _read(self, point: Point, kind: Kind, problem_id: str, letter: str) -> Point:
        """The point as the worked answer states it."""
        if not problem_id.startswith("train"):
            return point
        rng = random.Random(f"slip/{self.seed}/{problem_id}/{letter}")
        step = 2 if kind == "midpoint" else 1
        x, y = (_slip(value, step, self.grid, rng) if rng.random() < self.slip_rate else value for value in point)
        return x, y


def _slip(value: int, step: int, grid: int, rng: random.Random) -> int:
    return rng.choice([near for near in (value - step, value + step) if 0 <= near < grid] or [value])


def split_pairs(grid: int, split: Split) -> list[tuple[Point, Point]]:
    """The unordered pairs of distinct grid points that belong to `split`; the three splits are disjoint."""
    points = [(x, y) for x in range(grid) for y in range(grid)]
    pairs = [(a, b) for i, a in enumerate(points) for b in points[i + 1 :]]
    random.Random("point pairs").shuffle(pairs)
    low, high = SHARES[split]
    return pairs[round(low * len(pairs)) : round(high * len(pairs))]


def midpoint_pairs(pairs: Sequence[tuple[Point, Point]]) -> list[tuple[Point, Point]]:
    """The pairs whose midpoint has integer coordinates."""
    return [(a, b) for a, b in pairs if (a[0] + b[0]) % 2 == 0 and (a[1] + b[1]) % 2 == 0]


def solve(kind: Kind, a: Point, b: Point, asked: str) -> str:
    """The answer: a point "(x,y)", a number, or the sign of the slope in words."""
    if kind == "read":
        x, y = a if asked == "A" else b
        return f"({x},{y})"
    if kind == "midpoint":
        return f"({(a[0] + b[0]) // 2},{(a[1] + b[1]) // 2})"
    if kind == "distance":
        return str(abs(a[0] - b[0]) + abs(a[1] - b[1]))
    if a[0] == b[0]:
        return "undefined"
    product = (b[1] - a[1]) * (b[0] - a[0])
    return "positive" if product > 0 else "negative" if product < 0 else "zero"


def draw(points: dict[str, Point], grid: int, cell_pixels: int) -> Image:
    """An RGB picture [grid·cell, grid·cell]: disc A and square B, each in the middle of its cell, y upwards."""
    from PIL import Image, ImageDraw, ImageFont

    side = grid * cell_pixels
    picture = Image.new("RGB", (side, side), "white")
    canvas = ImageDraw.Draw(picture)
    middle = [cell * cell_pixels + cell_pixels // 2 for cell in range(grid)]
    for line in middle:
        canvas.line([(line, 0), (line, side)], fill="#dddddd")
        canvas.line([(0, line), (side, line)], fill="#dddddd")
    radius = cell_pixels * 7 // 16
    font = ImageFont.load_default(size=max(6, radius * 3 // 2))
    for letter, (x, y) in points.items():
        centre = (middle[x], middle[grid - 1 - y])
        box = [centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius]
        shape = canvas.ellipse if letter == "A" else canvas.rectangle
        shape(box, fill=_COLOURS[letter])
        canvas.text(centre, letter, fill="white", font=font, anchor="mm")
    return picture
