"""One row of a table, whatever it was stored in, as a problem."""

from __future__ import annotations

import hashlib
import json
import math
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from atrl.data.media import Media, shown
from atrl.data.messages import read_messages
from atrl.data.prompts import IMAGE_MARK, VIDEO_MARK
from atrl.suggest import did_you_mean
from atrl.types import Problem, Turn

_COLUMN_KEYS = ("problem_column", "answer_column", "images_column", "videos_column", "id_column", "choices_column")
_OPTIONAL_KEYS = ("videos_column", "id_column", "choices_column")

ChoiceAnswer = Literal["letter", "text"]
_ASK_FOR: dict[ChoiceAnswer, str] = {
    "letter": "Answer with the letter of the right choice.",
    "text": "Answer with the text of the right choice, not with its letter.",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands, as errors say it: "line 3 of problems.jsonl"."""

    values: Mapping[str, Any]
    place: str
    number: int
    """From 1: the line in a JSONL file, else the row."""


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """Which columns hold what, and how a row becomes a problem.

    Args:
        problem_column: text of the question, or a list of messages that ends with it (`read_messages`). Each
            ``<image>`` in the texts stands for one of the row's images and each ``<video>`` for one of its videos, in
            order; where a kind has no mark at all, one for each is put in front of the first thing that the user says.
        answer_column: text, number or truth value; numbers and truth values are written as in JSON.
        images_column: one image or a list: a path (relative to the table's file), a Hugging Face
            ``{"bytes", "path"}``, or encoded bytes. None for problems without pictures. Where there are videos, no
            column of the default name is needed.
        videos_column: one video or a list: a path, ``{"bytes", "path"}``, encoded bytes, or frames, as a list of
            images inside the list or as ``{"frames", "fps"}``. None, or no column of the default name, for none.
        id_column: text or whole number, unique; without it (None, or no column of the default name) a problem
            is named by its file and line.
        choices_column: a list of options, which are appended to the question as "(A) … (B) …". The answer may
            be the text of one or its letter. None, or no column of the default name, for none.
        choice_answer: whether the right answer to such a question is the letter or the text; the question
            says which.
        image_folder: where relative image and video paths start; None for the folder of the file that names them.
        frame_rate: frames per second of lists of frames whose row doesn't say; None insists that it does.
    """

    problem_column: str = "problem"
    answer_column: str = "answer"
    images_column: str | None = "images"
    videos_column: str | None = "videos"
    id_column: str | None = "id"
    choices_column: str | None = "choices"
    choice_answer: ChoiceAnswer = "letter"
    image_folder: str | None = None
    frame_rate: float | None = None

    def __post_init__(self) -> None:
        if self.choice_answer not in get_args(ChoiceAnswer):
            raise ValueError(f"data.choice_answer must be letter or text, got {self.choice_answer!r}")
        for key in ("problem_column", "answer_column"):
            if not getattr(self, key):
                raise ValueError(f"data.{key} is {getattr(self, key)!r}: name the column, every problem needs one")
        if self.image_folder is not None and not Path(self.image_folder).expanduser().is_dir():
            raise ValueError(f"data.image_folder {self.image_folder} is not a folder: correct it, or leave it null")
        if self.frame_rate is not None and not 0 < self.frame_rate < math.inf:
            raise ValueError(f"data.frame_rate must be above 0 frames per second, or null, got {self.frame_rate}")

    @property
    def columns(self) -> list[str]:
        """All columns that are read, where they exist."""
        return [name for key in _COLUMN_KEYS if (name := getattr(self, key))]

    def check_columns(self, available: Collection[str], origin: str) -> None:
        """Raises ValueError for the first configured column that `available` lacks.

        A missing images column is an error too, unless there is one of videos: a misspelt one would train a model
        blind.
        """
        default = {field.name: field.default for field in fields(RowFormat)}
        optional = (*_OPTIONAL_KEYS, *(["images_column"] if self.videos_column in available else []))
        for key in _COLUMN_KEYS:
            name = getattr(self, key)
            if not name or name in available or (key in optional and name == default[key]):
                continue
            hint = did_you_mean(name, available)
            remedy = "; for problems without pictures set it to null" if key == "images_column" else ""
            raise ValueError(
                f"data.{key}: {origin} has no column {name!r}{hint or '.'} "
                f"Its columns are {', '.join(available)}{remedy}"
            )

    def problem_id(self, row: Row) -> str:
        """What stands in the id column, which must be usable."""
        value = row.values.get(self.id_column)
        usable = isinstance(value, str | int) and not isinstance(value, bool)
        if not usable or not str(value).strip() or len(str(value).splitlines()) > 1:
            raise ValueError(
                f"{row.place}: {self.id_column} is {shown(value)}, which is no id: "
                "write a line of text or a whole number, or set data.id_column to null"
            )
        return _encodable(str(value), self.id_column, row.place)

    def content_key(self, row: Row) -> str:
        """A digest of all that is read from the row: what identifies a problem that has no id."""
        content = [row.values.get(name) for name in self.columns]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def to_problem(self, row: Row, problem_id: str, folder: Path | None) -> Problem:
        """The problem in `row`; pictures and videos in files stay there, but the files must exist.

        Raises:
            ValueError: naming the problem, if a value is missing or unusable, a file is missing, or marks and images
                or videos differ in number.
        """
        where = f"problem {problem_id} ({row.place})"
        history, question = self._conversation(row, where)
        answer = self._text(row, self.answer_column, where).strip()
        choices = row.values.get(self.choices_column) if self.choices_column else None
        if choices is not None:
            question, answer = self._with_choices(question, answer, choices, where)
        folder = Path(self.image_folder).expanduser() if self.image_folder else folder
        media = Media(problem_id, where, folder, self.frame_rate)
        images = tuple(media.image(value) for value in _listed(row, self.images_column, "an image", where))
        videos = tuple(media.video(value) for value in _listed(row, self.videos_column, "a video", where))
        turns = _with_marks([*history, Turn("user", question)], VIDEO_MARK, len(videos), where)
        *before, last = _with_marks(turns, IMAGE_MARK, len(images), where)
        return Problem(
            id=problem_id, question=last.text, answer=answer, images=images, videos=videos, history=tuple(before)
        )

    def _conversation(self, row: Row, where: str) -> tuple[tuple[Turn, ...], str]:
        value = row.values.get(self.problem_column)
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            return (), self._text(row, self.problem_column, where)
        history, question = read_messages(value, f"{where}: {self.problem_column}")
        for turn in (*history, Turn("user", question)):
            _encodable(turn.text, self.problem_column, where)
        if not question.strip():
            raise ValueError(f"{where}: {self.problem_column} ends with an empty question: fill it in")
        return history, question

    def _text(self, row: Row, column: str, where: str) -> str:
        text = _as_text(row.values.get(column), column, where)
        if not text.strip():
            raise ValueError(f"{where}: {column} is empty: fill it in, or leave the problem out")
        return text

    def _with_choices(self, question: str, answer: str, choices: Any, where: str) -> tuple[str, str]:
        if not isinstance(choices, Sequence) or isinstance(choices, str | bytes) or len(choices) > 26:
            raise ValueError(f"{where}: {self.choices_column} must be a list of up to 26 options, got {shown(choices)}")
        if not choices:
            return question, answer
        texts = [_as_text(choice, f"an option in {self.choices_column}", where).strip() for choice in choices]
        options = dict(zip(string.ascii_uppercase, texts, strict=False))
        right = {letter for letter, text in options.items() if text == answer or letter == answer}
        if len(right) != 1:
            fault = f"could be any of its options {', '.join(sorted(right))}" if right else "is none of its options"
            raise ValueError(
                f"{where}: the answer {shown(answer)} {fault}: write exactly one option's text or letter, "
                "or set data.choices_column to null"
            )
        letter = right.pop()
        listed = " ".join(f"({key}) {text}" for key, text in options.items())
        question = f"{question.rstrip()}\nChoices: {listed}\n{_ASK_FOR[self.choice_answer]}"
        return question, letter if self.choice_answer == "letter" else options[letter]


def _listed(row: Row, column: str | None, what: str, where: str) -> list[Any]:
    """The entries of a column that holds one thing or a list of them."""
    value = row.values.get(column) if column else None
    if value is None:
        return []
    if isinstance(value, str | bytes | Mapping):
        return [value]
    if isinstance(value, Sequence):
        return list(value)
    raise ValueError(f"{where}: {column} must be {what} or a list of {what.split()[1]}s, got {shown(value)}")


def _with_marks(turns: Sequence[Turn], mark: str, count: int, where: str) -> list[Turn]:
    """`turns` with as many marks as there are things to stand for; if they have none, all where the user begins."""
    marks, kind = sum(turn.text.count(mark) for turn in turns), mark.strip("<>")
    if marks == 0:
        first = next(index for index, turn in enumerate(turns) if turn.role == "user")
        marked = Turn("user", mark * count + turns[first].text)
        return [*turns[:first], marked, *turns[first + 1 :]]
    if marks != count:
        raise ValueError(
            f"{where}: the text has {marks} {mark} mark{'s' * (marks != 1)} for {count} "
            f"{kind}{'s' * (count != 1)}: write one mark for each {kind}, or none at all"
        )
    return list(turns)


def _as_text(value: Any, what: str, where: str) -> str:
    """Text as it is, numbers and truth values as JSON writes them."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        state = "missing" if value is None else str(value)
        raise ValueError(f"{where}: {what} is {state}: fill it in, or leave the problem out")
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {what} must be text, a number or a truth value, got {shown(value)}")
    return _encodable(value, what, where)


def _encodable(text: str, what: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: {what} holds half of a surrogate pair at character {error.start}: repair it"
        ) from error
    return text
