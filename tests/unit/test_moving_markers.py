"""The generated videos: what they show is what is asked, splits share nothing, guessing is poor."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from atrl.data.base import ProblemSource
from atrl.data.moving_markers import STAYED, STEPS, MovingMarkersProblems, Scene, split_of, walk, worked_answer
from atrl.types import Problem

SOURCE = MovingMarkersProblems(train_size=400)
WAY = ((0, 0), (1, 0), (1, 0), (1, 1))
OTHER = ((2, 2), (2, 1), (1, 1), (0, 1))


def scene(kind: str, asked: str = "A", at: int = 0) -> Scene:
    return Scene(kind, {"A": WAY, "B": OTHER}, asked, at)


def seen(problem: Problem, second: int) -> dict[str, tuple[int, int]]:
    """Where each marker is in the frames of a second, found by hue: red is A and blue is B."""
    (video,) = problem.videos
    pixels = np.asarray(video.source[second * SOURCE.fps]).astype(int)
    places = {}
    for marker, channel in (("A", 0), ("B", 2)):
        coloured = pixels[..., channel] - pixels[..., 2 - channel] > 60
        cells = coloured.reshape(SOURCE.grid, SOURCE.cell_pixels, SOURCE.grid, SOURCE.cell_pixels).sum(axis=(1, 3))
        row, column = np.unravel_index(cells.argmax(), cells.shape)
        places[marker] = (int(column), SOURCE.grid - 1 - int(row))
    return places


@pytest.mark.parametrize(
    ("asked", "at", "place", "step"),
    [
        ("A", 0, "(0,0)", "right"),
        ("A", 1, "(1,0)", "stayed"),
        ("A", 2, "(1,0)", "up"),
        ("B", 0, "(2,2)", "down"),
        ("B", 2, "(1,1)", "left"),
    ],
)
def test_answers_by_hand(asked, at, place, step):
    assert scene("where", asked, at).answer == place
    assert scene("move", asked, at).answer == step


def test_it_is_a_source():
    assert isinstance(SOURCE, ProblemSource)


def test_the_frames_show_what_the_answer_says():
    """From the pixels alone, by the second and the letter in the question."""
    for problem in SOURCE.load("train")[:60]:
        letter = re.search(r"\b([AB])\b", problem.question).group(1)
        seconds = [int(number) for number in re.findall(r"\d", problem.question)]
        here = seen(problem, seconds[0])[letter]
        if problem.answer.startswith("("):
            assert problem.answer == "({},{})".format(*here)
        else:
            there = seen(problem, seconds[0] + 1)[letter]
            step = (there[0] - here[0], there[1] - here[1])
            assert {**STEPS, STAYED: (0, 0)}[problem.answer] == step


def test_a_video_is_as_long_and_as_fast_as_asked_for():
    source = MovingMarkersProblems(seconds=3, fps=5, grid=4, cell_pixels=10)
    (video,) = source.load("test")[0].videos
    assert (len(video.source), video.fps) == (15, 5.0)
    assert {image.size for image in video.source} == {(40, 40)}
    frames = [np.asarray(image) for image in video.source]
    assert all((frames[index] == frames[index // 5 * 5]).all() for index in range(15))
    assert not (frames[0] == frames[5]).all()


def test_every_second_is_darker_than_the_one_before():
    (video,) = SOURCE.load("test")[3].videos
    corners = [image.getpixel((0, 0))[0] for image in video.source]
    assert corners == sorted(corners, reverse=True) and len(set(corners)) == SOURCE.seconds
    assert (corners[0], corners[-1]) == (255, 192)


def test_markers_step_at_most_one_cell_and_never_share_one():
    for index in range(200):
        ways = SOURCE.scene(f"train-{index}").ways
        for way in ways.values():
            assert all(abs(a[0] - b[0]) + abs(a[1] - b[1]) <= 1 for a, b in pairwise(way))
            assert all(0 <= x < SOURCE.grid and 0 <= y < SOURCE.grid for x, y in way)
        assert all(a != b for a, b in zip(*ways.values(), strict=True))


def test_a_walk_is_as_likely_to_be_at_each_place_at_its_end():
    """9 places, 9000 walks: 1000 each, with a standard deviation of 30."""
    rng = random.Random(0)
    ends = Counter(walk(3, 5, rng)[-1] for _ in range(9000))
    assert len(ends) == 9 and all(abs(count - 1000) < 120 for count in ends.values())


def test_splits_have_no_pair_of_ways_in_common_also_with_the_markers_exchanged():
    pairs = {}
    for split in ("train", "selection", "test"):
        scenes = [SOURCE.scene(f"{split}-{index}") for index in range(300)]
        assert {split_of(tuple(found.ways.values())) for found in scenes} == {split}
        pairs[split] = {frozenset(found.ways.values()) for found in scenes}
    assert not pairs["train"] & pairs["test"] and not pairs["train"] & pairs["selection"]
    assert not pairs["selection"] & pairs["test"]
    assert split_of((WAY, OTHER)) == split_of((OTHER, WAY))


def test_guessing_is_poor_and_the_baseline_says_how_poor():
    """Of 3 × 3 a place is 1 of 9; a step is left out at the edge, on which 3 of 9 places lie: 1 in 3 has stayed."""
    baseline = MovingMarkersProblems(grid=3).baseline()
    expected = 0.5 * 1 / 9 + 0.5 * 1 / 3
    assert abs(baseline["accuracy"] - expected) < 0.06 and baseline["problems"] == 512
    where = MovingMarkersProblems(grid=3, kinds=("where",))
    answers = Counter(problem.answer for problem in where.load("test"))
    assert where.baseline()["accuracy"] == max(answers.values()) / 512 < 0.16
    assert len(answers) == 9
    # Of 7 × 7: half of 1 in 49, and half of 6 in 28, which is each direction's share.
    assert SOURCE.baseline()["accuracy"] < 0.16


def test_a_question_alone_does_not_tell_its_answer():
    """For no question is one answer much likelier than over all questions of its kind."""
    answers: dict[str, Counter[str]] = {}
    for problem in MovingMarkersProblems(grid=3, train_size=3000, kinds=("where",)).load("train"):
        answers.setdefault(problem.question, Counter())[problem.answer] += 1
    for counts in answers.values():
        assert max(counts.values()) / sum(counts.values()) < 0.25


def test_worked_answers_read_the_seconds_that_are_asked_for():
    rng = random.Random(0)
    for _ in range(20):
        assert re.search(r"\(1,0\).*\(1,1\).*\\boxed\{up\}$", worked_answer(scene("move", "A", 2), rng))
        text = worked_answer(scene("where", "B", 3), rng)
        assert re.search(r"second 3.*\\boxed\{\(0,1\)\}$", text) and "B" in text
    for problem in SOURCE.load("train")[:50]:
        assert problem.target.endswith(f"\\boxed{{{problem.answer}}}")
        spans = problem.reading.spans(problem.target)
        assert len(spans) == (2 if problem.answer.startswith("(") else 4)
        assert all(problem.target[start:end].isdigit() for start, end in spans)


def test_problems_depend_on_seed_and_id_alone():
    def facts(source, split="test"):
        return [(p.id, p.question, p.answer, p.target, p.videos[0].source[0].tobytes()) for p in source.load(split)[:9]]

    assert facts(SOURCE) == facts(MovingMarkersProblems(train_size=7, test_size=9))
    assert facts(SOURCE) != facts(MovingMarkersProblems(seed=1))
    assert facts(SOURCE) != [("test" + fact[0][9:], *fact[1:]) for fact in facts(SOURCE, "selection")]
    problems = SOURCE.load("test")
    assert problems[-1].id == "test-511" and len(problems) == 512
    with pytest.raises(IndexError):
        problems[512]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 1}, "data.grid must be 2 … 10, got 1"),
        ({"seconds": 1}, "data.seconds must be 2 … 10, got 1"),
        ({"fps": 0}, "data.fps must be 1 … 60, got 0"),
        ({"cell_pixels": 7}, "data.cell_pixels must be 8 … 256, got 7"),
        ({"kinds": ()}, "data.kinds must name at least one of where, move, got"),
        ({"kinds": ("when",)}, "data.kinds must name"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        MovingMarkersProblems(**options)


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match=r"data\.test_size is 0, which leaves no problem"):
        MovingMarkersProblems(test_size=0).load("test")
