"""Problems told as conversations: which turn becomes what, where pictures go, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from problem_files import add_pictures, row, write_jsonl

from atrl.data.tabular import TabularProblems
from atrl.types import Problem, Turn

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is this red?"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "How many?"},
]


def load(folder: Path, *rows: dict, **options) -> list[Problem]:
    return list(TabularProblems(path=write_jsonl(folder, *rows), **{"test_fraction": 0, **options}).load("train"))


@pytest.fixture
def folder(tmp_path) -> Path:
    return add_pictures(tmp_path)


def test_the_last_message_asks_and_the_others_are_history(folder: Path) -> None:
    (problem,) = load(folder, row(problem=TALK, images=[]))
    assert problem.question == "How many?"
    assert problem.history == (Turn("system", "Be brief."), Turn("user", "Is this red?"), Turn("assistant", "No."))


def test_a_single_message_is_a_question(folder: Path) -> None:
    (problem,) = load(folder, row(problem=TALK[-1:]))
    assert (problem.question, problem.history) == ("<image>How many?", ())


def test_pictures_without_marks_stand_before_the_first_thing_the_user_says(folder: Path) -> None:
    (problem,) = load(folder, row(problem=TALK, images=["a.png", "a.png"]))
    assert [turn.text for turn in problem.history] == ["Be brief.", "<image><image>Is this red?", "No."]
    assert problem.question == "How many?" and len(problem.images) == 2


def test_marks_and_image_parts_stay_where_they_are(folder: Path) -> None:
    parts = [{"type": "text", "text": "How many in "}, {"type": "image"}, {"type": "text", "text": "?"}]
    talk = [{"role": "user", "content": "Is <image> red?"}, TALK[2], {"role": "user", "content": parts}]
    (problem,) = load(folder, row(problem=talk, images=["a.png", "sub/b.png"]))
    assert problem.history[0].text == "Is <image> red?" and problem.question == "How many in <image>?"
    assert problem.images == (folder / "a.png", folder / "sub/b.png")


def test_choices_belong_to_the_question(folder: Path) -> None:
    (problem,) = load(folder, row(problem=TALK, answer="2", choices=["1", "2"], images=[]))
    assert problem.question.startswith("How many?\nChoices: (A) 1 (B) 2") and problem.answer == "B"
    assert problem.history[1].text == "Is this red?"


@pytest.mark.parametrize(
    ("talk", "line"),
    [
        ([], "must end with the user's question, and ends with nobody"),
        (TALK[:3], "must end with the user's question, and ends with assistant"),
        (
            [{"role": "tool", "content": "x"}, TALK[3]],
            "message 1 must have a role (system, user, assistant) and a content",
        ),
        ([{"role": "user"}], "message 1 must have a role (system, user, assistant) and a content"),
        (["How many?"], "message 1 must have a role (system, user, assistant) and a content, got 'How many?'"),
        ([TALK[0], {"role": "user", "content": 3}], "message 2 must have a text or a list of parts as content, got 3"),
        (
            [{"role": "user", "content": [{"type": "audio"}]}],
            "message 1 has a part that is neither a text nor an image",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 1 has a part that is neither a text nor an image"),
        ([{"role": "user", "content": " "}], "problem ends with an empty question"),
        ([{"role": "user", "content": "\ud800"}], "problem holds half of a surrogate pair"),
        ([{"role": "user", "content": "<image> <image>?"}], "the text has 2 <image> marks for 1 image:"),
    ],
)
def test_conversations_that_are_refused(folder: Path, talk: list, line: str) -> None:
    path = folder / "problems.jsonl"
    path.write_text(json.dumps(row(problem=talk)) + "\n")
    with pytest.raises(ValueError) as error:
        TabularProblems(path=str(path), test_fraction=0).load("train")
    message = str(error.value)
    assert message.startswith("problem p0 (line 1 of ") and line in message and "\n" not in message
