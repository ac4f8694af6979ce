"""Problems checked against their own pictures: the points are found again by colour, and the answer worked out anew."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from atrl.data import geometry, wording
from atrl.data.geometry import GeometryProblems, draw, midpoint_pairs, split_pairs
from atrl.types import Problem

SPLITS = ("train", "selection", "test")
COLOUR = {"A": (0xD6, 0x27, 0x28), "B": (0x1F, 0x77, 0xB4)}
GRID, CELL = 7, 16


def points(problem: Problem) -> dict[str, tuple[int, int]]:
    """Letter → the grid cell with most pixels of its colour, counted from the bottom left."""
    (picture,) = problem.images
    pixels = np.asarray(picture)
    found = {}
    for letter, colour in COLOUR.items():
        cells = (pixels == colour).all(axis=2).reshape(GRID, CELL, GRID, CELL).sum(axis=(1, 3))
        row, column = np.unravel_index(cells.argmax(), cells.shape)
        found[letter] = (int(column), GRID - 1 - int(row))
    return found


def kind_of(problem: Problem) -> str:
    """What is asked, as a reader of the question would say."""
    words = {"midpoint": "midpoint|midway", "distance": "distance|How far", "slope": "slope"}
    return next((kind for kind, pattern in words.items() if re.search(pattern, problem.question)), "read")


def worked_out(problem: Problem, places: dict[str, tuple[int, int]]) -> str:
    """The answer, if A and B lie at `places`."""
    (ax, ay), (bx, by) = places["A"], places["B"]
    kind = kind_of(problem)
    if kind == "read":
        return "({},{})".format(*places[re.search(r"\b[AB]\b", problem.question)[0]])
    if kind == "midpoint":
        x, y = Fraction(ax + bx, 2), Fraction(ay + by, 2)
        assert x.denominator == y.denominator == 1, "a midpoint between the grid lines"
        return f"({x},{y})"
    if kind == "distance":
        return str(max(ax, bx) - min(ax, bx) + max(ay, by) - min(ay, by))
    if ax == bx:
        return "undefined"
    slope = Fraction(by - ay, bx - ax)
    return "zero" if slope == 0 else "positive" if slope > 0 else "negative"


def statements(problem: Problem) -> list[re.Match]:
    """Every "A … at (x,y)" of the worked answer: letter and two digits."""
    return list(re.finditer(r"\b([AB]) (?:(?:is|lies|sits) )?at \((\d),(\d)\)", problem.target))


@pytest.fixture(scope="module")
def problems() -> dict[str, list[Problem]]:
    """Three hundred problems of each split."""
    source = GeometryProblems(train_size=300, selection_size=300, test_size=300)
    return {split: list(source.load(split)) for split in SPLITS}


def test_answers_are_right(problems):
    for problem in problems["train"] + problems["test"]:
        assert problem.answer == worked_out(problem, points(problem)), problem


def test_every_kind_and_every_sign_occurs(problems):
    kinds = [kind_of(problem) for problem in problems["train"]]
    assert all(kinds.count(kind) >= 50 for kind in ("read", "midpoint", "distance", "slope"))  # 75 expected of each
    slopes = {problem.answer for problem in problems["train"] if kind_of(problem) == "slope"}
    assert slopes == {"positive", "negative", "zero", "undefined"}


@pytest.mark.parametrize("grid", [3, 7, 10])
def test_the_splits_share_no_pair_of_points(grid):
    parts = [{frozenset(pair) for pair in split_pairs(grid, split)} for split in SPLITS]
    assert all(not first & second for first, second in combinations(parts, 2))
    assert sum(map(len, parts)) == grid**2 * (grid**2 - 1) // 2  # every pair of distinct points is somewhere
    assert all(len(pair) == 2 for part in parts for pair in part)


def test_no_pair_of_points_is_drawn_in_two_splits(problems):
    drawn = {split: {frozenset(points(problem).values()) for problem in problems[split]} for split in SPLITS}
    assert all(len(pair) == 2 for pairs in drawn.values() for pair in pairs)
    assert all(not drawn[first] & drawn[second] for first, second in combinations(SPLITS, 2))
    assert all(drawn[split] <= {frozenset(pair) for pair in split_pairs(GRID, split)} for split in SPLITS)


def test_midpoint_pairs_are_those_of_equal_parity():
    pairs = [((0, 0), (2, 4)), ((0, 0), (1, 2)), ((1, 3), (5, 1)), ((1, 3), (5, 2))]
    assert midpoint_pairs(pairs) == [pairs[0], pairs[2]]


def test_targets_end_in_the_boxed_answer(problems):
    for problem in problems["train"]:
        assert problem.target.endswith(f"\\boxed{{{problem.answer}}}")
        assert problem.target.count("\\boxed") == 1


def test_the_reading_rule_marks_exactly_the_digits_that_were_read(problems):
    """Every point that the target states is true of the picture, and its two digits are what the rule finds."""
    for problem in problems["train"]:
        stated = statements(problem)
        assert len(stated) == (1 if kind_of(problem) == "read" else 2)
        for match in stated:
            assert (int(match[2]), int(match[3])) == points(problem)[match[1]]
        assert problem.reading.spans(problem.target) == [match.span(group) for match in stated for group in (2, 3)]


def test_slips_are_in_what_the_training_targets_read(problems):
    """At the given rate, by one grid line (a midpoint's by two); the rest of the worked answer follows from them."""
    slipping = GeometryProblems(train_size=300, selection_size=300, test_size=300, slip_rate=0.25)
    coordinates = slips = 0
    for problem, plain in zip(slipping.load("train"), problems["train"], strict=True):
        assert replace(problem, target=plain.target, images=plain.images) == plain
        assert problem.images[0].tobytes() == plain.images[0].tobytes()
        true, step = points(problem), 2 if kind_of(problem) == "midpoint" else 1
        read = {match[1]: (int(match[2]), int(match[3])) for match in statements(problem)}
        for letter, place in read.items():
            away = [abs(seen - real) for seen, real in zip(place, true[letter], strict=True)]
            assert set(away) <= {0, step} and all(0 <= value < GRID for value in place)
            coordinates, slips = coordinates + 2, slips + sum(distance > 0 for distance in away)
        assert problem.target.endswith(f"\\boxed{{{worked_out(problem, true | read)}}}")
    assert abs(slips - coordinates / 4) < 4 * (coordinates * 3 / 16) ** 0.5  # four standard deviations
    for split in ("selection", "test"):
        assert [problem.target for problem in slipping.load(split)] == [problem.target for problem in problems[split]]


def test_wording_varies(problems):
    assert (
        len({problem.question for problem in problems["train"]}) >= 12
    )  # 3·2 to read a point, and 3 of each other kind
    openings = {problem.target.split("(")[0] for problem in problems["train"]}
    assert len(openings) >= 20
    first = [re.search(r"\b[AB]\b", problem.target)[0] for problem in problems["train"] if kind_of(problem) != "read"]
    assert first.count("A") >= 70 and first.count("B") >= 70  # of 225, half each expected


def test_questions_carry_one_mark_and_do_not_give_the_points_away(problems):
    for problem in problems["train"]:
        assert problem.question.startswith("<image>") and problem.question.count("<image>") == 1
        assert not re.search(r"\d", problem.question)


def as_values(problem: Problem) -> tuple:
    return problem.id, problem.question, problem.answer, problem.target, problem.images[0].tobytes()


def test_a_problem_is_a_function_of_seed_and_id():
    """Whatever the size of its split, and however often it is asked for."""
    first, again = (GeometryProblems(train_size=size, seed=4).load("train") for size in (20, 50))
    assert [as_values(problem) for problem in first] == [as_values(again[index]) for index in range(20)]
    other = GeometryProblems(train_size=20, seed=5).load("train")
    assert [as_values(problem) for problem in first] != [as_values(problem) for problem in other]
    assert len({problem.id for problem in first}) == 20


def test_nothing_is_drawn_before_it_is_asked_for(monkeypatch):
    drawn = []
    original = geometry.draw
    monkeypatch.setattr(geometry, "draw", lambda *args: drawn.append(args) or original(*args))
    train = GeometryProblems(train_size=10**9).load("train")
    assert len(train) == 10**9 and drawn == []
    assert train[10**9 - 1].id == "train-999999999" == train[-1].id
    assert [problem.id for problem in train[2:6:2]] == ["train-2", "train-4"]
    assert len(drawn) == 4
    for outside in (10**9, -(10**9) - 1):
        with pytest.raises(IndexError):
            train[outside]


@pytest.mark.parametrize("kind", ["read", "midpoint", "distance", "slope"])
def test_kinds_restrict_what_is_asked(kind):
    assert {kind_of(problem) for problem in GeometryProblems(kinds=[kind], test_size=20).load("test")} == {kind}


def test_the_picture_by_pixel():
    """A at (0,0) is the bottom left cell, B at (2,1) the right column's middle row of a 3×3 grid of 20-pixel cells."""
    picture = draw({"A": (0, 0), "B": (2, 1)}, grid=3, cell_pixels=20)
    assert picture.size == (60, 60) and picture.mode == "RGB"
    for letter, middle in {"A": (10, 50), "B": (50, 30)}.items():
        x, y = middle
        # Reach 20·7 // 16 = 8: inside it beside the letter the shape's colour, outside it the grid line.
        assert picture.getpixel((x - 7, y)) == picture.getpixel((x, y + 7)) == COLOUR[letter]
        assert picture.getpixel((x - 9, y)) == (0xDD,) * 3
        assert picture.getpixel((x - 7, y - 7)) == {"A": (255, 255, 255), "B": COLOUR["B"]}[letter]  # disc and square
        letter_box = np.asarray(picture.crop((x - 4, y - 5, x + 5, y + 6)))
        assert (letter_box.min(axis=2) > 200).sum() >= 5, "the letter, white up to its smooth edges"
    assert picture.getpixel((30, 30)) == (0xDD,) * 3 and picture.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 1}, r"data\.grid must be 2 … 10 .* got 1"),
        ({"grid": 11}, r"data\.grid must be 2 … 10 .* got 11"),
        ({"grid": 2}, r"data\.grid=2 is too small .* set data\.grid to 3 or more"),
        ({"slip_rate": 1.0}, r"data\.slip_rate must be in \[0, 1\), got 1\.0"),
        ({"slip_rate": -0.1}, r"data\.slip_rate must be in \[0, 1\), got -0\.1"),
        ({"kinds": []}, r"data\.kinds is empty"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        GeometryProblems(**options)


def test_small_grids_work_where_they_can():
    for source in (GeometryProblems(grid=3), GeometryProblems(grid=2, kinds=["read", "distance", "slope"])):
        for split in SPLITS:
            assert len({problem.answer for problem in source.load(split)[:20]}) > 1
    with pytest.raises(ValueError, match=r"data\.test_size is 0"):
        GeometryProblems(test_size=0).load("test")


def test_fillers_lengthen_worked_answers_and_nothing_else():
    plain, wordy = GeometryProblems(), GeometryProblems(filler_sentences=4)
    for before, after in zip(plain.load("train")[:40], wordy.load("train")[:40], strict=True):
        assert (before.id, before.question, before.answer) == (after.id, after.question, after.answer)
        sentences = [sentence for sentence in wording._FILLERS if sentence in after.target]
        assert len(sentences) == 4
        stripped = after.target
        for sentence in sentences:
            stripped = stripped.replace(sentence, "")
        assert stripped == before.target
        # What is read is still found, and nothing else.
        texts = [[target[i:j] for i, j in before.reading.spans(target)] for target in (before.target, after.target)]
        assert texts[0] == texts[1]
        first = min(after.target.index(sentence) for sentence in sentences)
        last = max(after.target.index(sentence) for sentence in sentences)
        assert first < after.reading.spans(after.target)[0][0] < last


@pytest.mark.parametrize("count", [-1, 13])
def test_there_are_twelve_fillers(count):
    with pytest.raises(ValueError, match=rf"data\.filler_sentences must be in \[0, 12\], got {count}"):
        GeometryProblems(filler_sentences=count)
