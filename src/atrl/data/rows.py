"""One row of a table, whatever it was stored in, as a problem."""

from __future__ import annotations

import hashlib
import json
import math
import os
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from atrl.data.images import image_from_bytes
from atrl.data.messages import read_messages
from atrl.data.prompts import IMAGE_MARK
from atrl.suggest import did_you_mean
from atrl.types import Problem, Turn

if TYPE_CHECKING:
    from PIL.Image import Image

_COLUMN_KEYS = ("problem_column", "answer_column", "images_column", "id_column", "choices_column")
_OPTIONAL_KEYS = ("id_column", "choices_column")

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
            ``<image>`` in the texts stands for one of the row's images, in order; if there is no mark at all, one for
            each image is put in front of the first thing that the user says.
        answer_column: text, number or truth value; numbers and truth values are written as in JSON.
        images_column: one image or a list: a path (relative to the table's file), a Hugging Face
            ``{"bytes", "path"}``, or encoded bytes. None for problems without pictures.
        id_column: text or whole number, unique; without it (None, or no column of the default name) a problem
            is named by its file and line.
        choices_column: a list of options, which are appended to the question as "(A) … (B) …". The answer may
            be the text of one or its letter. None, or no column of the default name, for none.
        choice_answer: whether the right answer to such a question is the letter or the text; the question
            says which.
        image_folder: where relative image paths start; None for the folder of the file that names them.
    """

    problem_column: str = "problem"
    answer_column: str = "answer"
    images_column: str | None = "images"
    id_column: str | None = "id"
    choices_column: str | None = "choices"
    choice_answer: ChoiceAnswer = "letter"
    image_folder: str | None = None

    def __post_init__(self) -> None:
        if self.choice_answer not in get_args(ChoiceAnswer):
            raise ValueError(f"data.choice_answer must be letter or text, got {self.choice_answer!r}")
        for key in ("problem_column", "answer_column"):
            if not getattr(self, key):
                raise ValueError(f"data.{key} is {getattr(self, key)!r}: name the column, every problem needs one")
        if self.image_folder is not None and not Path(self.image_folder).expanduser().is_dir():
            raise ValueError(f"data.image_folder {self.image_folder} is not a folder: correct it, or leave it null")

    @property
    def columns(self) -> list[str]:
        """All columns that are read, where they exist."""
        return [name for key in _COLUMN_KEYS if (name := getattr(self, key))]

    def check_columns(self, available: Collection[str], origin: str) -> None:
        """Raises ValueError for the first configured column that `available` lacks.

        A missing images column is an error too: a misspelt one would train a model blind.
        """
        default = {field.name: field.default for field in fields(RowFormat)}
        for key in _COLUMN_KEYS:
            name = getattr(self, key)
            if not name or name in available or (key in _OPTIONAL_KEYS and name == default[key]):
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
                f"{row.place}: {self.id_column} is {_shown(value)}, which is no id: "
                "write a line of text or a whole number, or set data.id_column to null"
            )
        return _encodable(str(value), self.id_column, row.place)

    def content_key(self, row: Row) -> str:
        """A digest of all that is read from the row: what identifies a problem that has no id."""
        content = [row.values.get(name) for name in self.columns]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def to_problem(self, row: Row, problem_id: str, folder: Path | None) -> Problem:
        """The problem in `row`; pictures in files stay there, but the files must exist.

        Raises:
            ValueError: naming the problem, if a value is missing or unusable, an image file is missing, or
                marks and images differ in number.
        """
        where = f"problem {problem_id} ({row.place})"
        history, question = self._conversation(row, where)
        answer = self._text(row, self.answer_column, where).strip()
        choices = row.values.get(self.choices_column) if self.choices_column else None
        if choices is not None:
            question, answer = self._with_choices(question, answer, choices, where)
        images = tuple(self._image(value, problem_id, folder, where) for value in self._image_values(row, where))
        *history, last = _with_marks([*history, Turn("user", question)], len(images), where)
        return Problem(id=problem_id, question=last.text, answer=answer, images=images, history=tuple(history))

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
            raise ValueError(
                f"{where}: {self.choices_column} must be a list of up to 26 options, got {_shown(choices)}"
            )
        if not choices:
            return question, answer
        texts = [_as_text(choice, f"an option in {self.choices_column}", where).strip() for choice in choices]
        options = dict(zip(string.ascii_uppercase, texts, strict=False))
        right = {letter for letter, text in options.items() if text == answer or letter == answer}
        if len(right) != 1:
            fault = f"could be any of its options {', '.join(sorted(right))}" if right else "is none of its options"
            raise ValueError(
                f"{where}: the answer {_shown(answer)} {fault}: write exactly one option's text or letter, "
                "or set data.choices_column to null"
            )
        letter = right.pop()
        listed = " ".join(f"({key}) {text}" for key, text in options.items())
        question = f"{question.rstrip()}\nChoices: {listed}\n{_ASK_FOR[self.choice_answer]}"
        return question, letter if self.choice_answer == "letter" else options[letter]

    def _image_values(self, row: Row, where: str) -> list[Any]:
        value = row.values.get(self.images_column) if self.images_column else None
        if value is None:
            return []
        if isinstance(value, str | bytes | Mapping):
            return [value]
        if isinstance(value, Sequence):
            return list(value)
        raise ValueError(f"{where}: {self.images_column} must be an image or a list of images, got {_shown(value)}")

    def _image(self, value: Any, problem_id: str, folder: Path | None, where: str) -> Path | Image:
        if isinstance(value, Mapping):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, bytes):
            return image_from_bytes(value, problem_id=problem_id)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}: {_shown(value)} is not an image: give a path, or the bytes of a picture")
        return self._image_file(value, folder, where)

    def _image_file(self, name: str, folder: Path | None, where: str) -> Path:
        if name.startswith(("http://", "https://", "data:")):
            raise ValueError(f"{where}: image {_shown(name)} is not a file: save it as one and give its path")
        folder = Path(self.image_folder).expanduser() if self.image_folder else folder
        if folder is None and not os.path.isabs(name):
            raise ValueError(
                f"{where}: image {_shown(name)} is a relative path: set data.image_folder to where it starts"
            )
        path = Path(folder or "", name)
        if not os.path.isfile(path):
            siblings = os.listdir(path.parent) if os.path.isdir(path.parent) else []
            raise ValueError(
                f"{where}: image {_shown(str(path))} does not exist"
                f"{did_you_mean(path.name, siblings) or '.'} "
                "Correct the path, or set data.image_folder to where relative paths start"
            )
        return path


def _with_marks(turns: Sequence[Turn], images: int, where: str) -> list[Turn]:
    marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    if marks == 0:
        first = next(index for index, turn in enumerate(turns) if turn.role == "user")
        marked = Turn("user", IMAGE_MARK * images + turns[first].text)
        return [*turns[:first], marked, *turns[first + 1 :]]
    if marks != images:
        raise ValueError(
            f"{where}: the text has {marks} {IMAGE_MARK} mark{'s' * (marks != 1)} for {images} "
            f"image{'s' * (images != 1)}: write one mark for each image, or none at all"
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
        raise ValueError(f"{where}: {what} must be text, a number or a truth value, got {_shown(value)}")
    return _encodable(value, what, where)


def _encodable(text: str, what: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: {what} holds half of a surrogate pair at character {error.start}: repair it"
        ) from error
    return text


def _shown(value: Any) -> str:
    """The value for an error message, on one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
