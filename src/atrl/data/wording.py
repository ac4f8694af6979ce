"""The words of the geometry problems: questions, and worked answers for the supervised warm-up.

The wording varies at random, so that a response carries tokens whose choice the reward does not care about.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_QUESTIONS = {
    "read": ("Where is {asked}?", "What are the coordinates of {asked}?", "Read off point {asked}."),
    "midpoint": (
        "What is the midpoint of A and B?",
        "Find the midpoint of AB.",
        "Which point lies midway between A and B?",
    ),
    "distance": (
        "What is the Manhattan distance of A and B?",
        "How far is B from A along the grid lines?",
        "Find the Manhattan distance between A and B.",
    ),
    "slope": (
        "Is the slope of AB positive or negative?",
        "What sign has the slope of AB?",
        "Find the sign of the slope of AB.",
    ),
}
_OPENERS = ("", "Let us look at the picture. ", "From the picture, ", "First read the grid: ", "On the grid, ")
_PLACES = ("{p} is at {at}", "{p} lies at {at}", "point {p} sits at {at}", "I see {p} at {at}")
_JOINS = (" and ", ", while ", ", and ", "; ")
_RESULTS = {
    "midpoint": (
        "({ax}+{bx})/2 = {mx} and ({ay}+{by})/2 = {my}. ",
        "Half of {ax}+{bx} is {mx}, half of {ay}+{by} is {my}. ",
        "Midway of {ax} and {bx} is {mx}, midway of {ay} and {by} is {my}. ",
    ),
    "distance": (
        "|{ax}-{bx}| = {dx} and |{ay}-{by}| = {dy}. ",
        "From {ax} to {bx} it is {dx}, from {ay} to {by} it is {dy}. ",
        "Across {ax} to {bx} takes {dx}, up or down {ay} to {by} takes {dy}. ",
    ),
    "slope": (
        "From A to B, x goes {ax} to {bx}, it {x_way}, and y goes {ay} to {by}, it {y_way}. ",
        "So x {x_way} ({ax} to {bx}) and y {y_way} ({ay} to {by}). ",
        "With {ax} then {bx}, x {x_way}; with {ay} then {by}, y {y_way}. ",
    ),
}
_FILLERS = (
    "The picture shows a grid of thin grey lines. ",
    "Columns are counted from the left. ",
    "Rows are counted from the bottom. ",
    "The disc is A and the square is B. ",
    "Both points lie where two lines cross. ",
    "Counting starts at zero, as usual. ",
    "Nothing else is drawn in the picture. ",
    "The colours do not matter here. ",
    "Let me go through this slowly. ",
    "A careful look is worth the time. ",
    "The first number is the column, the second is the row. ",
    "This kind of question is a common one. ",
)
_CLOSERS = ("The answer is ", "So the answer is ", "Hence ", "Answer: ")


def question(kind: str, asked: str, rng: random.Random) -> str:
    """One of the wordings of what is asked, `asked` being the letter of the point to read."""
    return rng.choice(_QUESTIONS[kind]).format(asked=asked)


def fillers(count: int, rng: random.Random) -> list[str]:
    """`count` different sentences that are true of every picture, and so of no use to the answer.

    Raises:
        ValueError: if there are not so many.
    """
    if not 0 <= count <= len(_FILLERS):
        raise ValueError(f"data.filler_sentences must be in [0, {len(_FILLERS)}], got {count}")
    return rng.sample(_FILLERS, count)


def worked_answer(
    kind: str,
    a: tuple[int, int],
    b: tuple[int, int],
    asked: str,
    answer: str,
    rng: random.Random,
    filler: Sequence[str] = (),
) -> str:
    """A response that states the points it reads, works out the answer step by step and ends in ``\\boxed{answer}``.

    Of the sentences of `filler` the first half comes before the reading, the rest before the result.
    """

    def place(letter: str) -> str:
        x, y = a if letter == "A" else b
        return rng.choice(_PLACES).format(p=letter, at=f"({x},{y})")

    if kind == "read":
        reading, result = place(asked), ""
    else:
        first, second = rng.choice(("AB", "BA"))
        reading = place(first) + rng.choice(_JOINS) + place(second)
        numbers = {
            **{"ax": a[0], "ay": a[1], "bx": b[0], "by": b[1]},
            **{"mx": (a[0] + b[0]) // 2, "my": (a[1] + b[1]) // 2, "dx": abs(a[0] - b[0]), "dy": abs(a[1] - b[1])},
            **{"x_way": _way(a[0], b[0]), "y_way": _way(a[1], b[1])},
        }
        result = rng.choice(_RESULTS[kind]).format(**numbers)
    opener = rng.choice(_OPENERS)
    if not opener.endswith(", ") and not opener.endswith(": "):
        reading = reading[0].upper() + reading[1:]
    half = len(filler) // 2
    before, between = "".join(filler[:half]), "".join(filler[half:])
    return f"{before}{opener}{reading}. {between}{result}{rng.choice(_CLOSERS)}\\boxed{{{answer}}}"


def _way(start: int, end: int) -> str:
    return "rises" if end > start else "falls" if end < start else "stays"
