"""MMMU (Yue et al., CVPR 2024, arXiv 2311.16502): college questions of 30 subjects, mostly multiple choice.

Parsing and comparison are those of `mmmu/utils/eval_utils.py` of https://github.com/MMMU-Benchmark/MMMU, but for its
random guess where it finds no choice: that stays wrong here, and is counted as ``unguessed``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, ClassVar

from atrl.benchmarks.base import Benchmark, Columns, Item, Scored, as_text, option_list

if TYPE_CHECKING:
    import numpy as np

    from atrl.benchmarks.figures import Figure, Units

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy"),
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        *("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power"),
        *("Materials", "Mechanical_Engineering"),
    ),
}
SUBJECTS = [subject for subjects in DOMAINS.values() for subject in subjects]
_CHOICE = "multiple-choice"
_MARKS = (",", ".", "!", "?", ";", ":", "'")
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)
_COLUMNS: Columns = {
    "id": "id",
    "answer": ["answer", "ground_truth"],
    "question_type": "question_type",
    "question": "question",
    "options": "options",
    "index2ans": "index2ans",
    **{f"image_{number}": f"image_{number}" for number in range(1, 8)},
}


def parse_choice(response: str, options: Mapping[str, str]) -> str | None:
    """The letter that a response chooses, or None where the authors would guess.

    ``(A)`` anywhere, else `` A `` between spaces, else, in a response of more than five words, an option's text. Of
    several candidates the one whose last occurrence comes last.
    """
    for mark in _MARKS:
        response = response.strip(mark)
    padded = f" {response} "
    lowered = padded.lower()
    for pattern in ("({})", " {} "):
        candidates = [letter for letter in options if pattern.format(letter) in padded]
        if candidates:
            return max(candidates, key=lambda letter: padded.rfind(pattern.format(letter)))
    if len(padded.split()) <= 5:
        return None
    named = [letter for letter, text in options.items() if text.lower() in lowered]
    return max(named, key=lambda letter: lowered.rfind(options[letter].lower()), default=None)


def normalise(text: str) -> list[str | float]:
    """A number rounded to two places, or the text in lower case; a single character gets a space at either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def parse_open(response: str) -> list[str | float]:
    """All that a free response may be taken to answer: the ends of its key sentences, and the numbers in them."""
    found = _key_responses(response)
    numbers = [number for part in found for pattern in _NUMBERS for number in re.findall(pattern, part)]
    return [form for part in (*found, *numbers) for form in normalise(part)]


def _key_responses(response: str) -> list[str]:
    response = response.strip().strip(".").lower()
    sentences = re.split(r"\.\s(?=[A-Z])|\n", response)
    found = []
    for place, sentence in enumerate(sentences):
        keys = (*_KEYS, "=") if place == len(sentences) - 1 else _KEYS
        ends = [sentence.split(key)[-1].strip() for key in keys if key in sentence]
        if not ends:
            continue
        shortest = ends[0]
        for end in ends[1:]:  # an empty end gives way to the next, whatever its length
            shortest = end if not shortest or len(end) < len(shortest) else shortest
        if shortest and shortest not in _MARKS:
            found.append(shortest)
    return found or [response]


def equal_open(golds: Sequence[str], predictions: Sequence[str | float]) -> bool:
    """Whether a gold text stands in a predicted text, or a gold number is a predicted number."""
    forms = [form for gold in golds for form in normalise(gold)]
    texts = [form for form in forms if isinstance(form, str)]
    return any(
        any(text in prediction for text in texts) if isinstance(prediction, str) else prediction in forms
        for prediction in predictions
    )


@dataclass(frozen=True, kw_only=True)
class MMMU(Benchmark):
    """The validation split has 900 questions; the headline is the share that is right."""

    name = "mmmu"
    headline = "accuracy"
    extras = ("unguessed",)
    unanswered: ClassVar = {"unguessed": 1.0}
    image_roles = tuple(f"image_{number}" for number in range(1, 8))
    hub: str = "MMMU/MMMU"
    config: str | list[str] | None = field(default_factory=lambda: list(SUBJECTS))
    split: str | list[str] = "validation"
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))
    instruction: str = "Answer with the option's letter from the given choices directly."
    open_instruction: str = "Answer the question using a single word or phrase."

    def gold(self, row: Mapping[str, Any]) -> str:
        """Several right answers are listed with " / "."""
        return " / ".join(_golds(row["answer"]))

    def prompt(self, item: Item) -> str:
        """Question, options as "(A) …" in lines, and the instruction of its kind."""
        question = str(item.get("question", ""))
        if not _is_choice(item):
            return f"{question}\n\n{self.open_instruction}"
        options = "".join(f"({letter}) {text}\n" for letter, text in options_of(item).items())
        return f"{question}\n\n{options}\n\n{self.instruction}"

    def extract(self, response: str, item: Item) -> str | None:
        """Of a choice the letter; a free answer is looked for by `judge`."""
        return parse_choice(response, options_of(item)) if _is_choice(item) else response

    def judge(self, extraction: str | None, item: Item) -> Scored:
        """A letter must be the gold's; of a free answer see `equal_open`."""
        if not extraction:
            return Scored(extraction, None, 0.0, {"unguessed": float(_is_choice(item))})
        golds = _golds(item.row["answer"])
        right = extraction in golds if _is_choice(item) else equal_open(golds, parse_open(extraction))
        return Scored(extraction, extraction, float(right))

    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """Accuracy, by domain and subject, and the share of questions on which the authors would have guessed."""
        score = values["score"]
        subjects = [subject_of(item.id) for item in items]
        domain = {subject: domain for domain, listed in DOMAINS.items() for subject in listed}
        return [
            units.mean("accuracy", score),
            units.mean("unguessed", values["unguessed"]),
            *units.means_by("domain/", score, [domain.get(subject) for subject in subjects]),
            *units.means_by("subject/", score, subjects),
        ]


def subject_of(item_id: str) -> str | None:
    """``validation_Art_Theory_3`` is of Art_Theory."""
    found = re.fullmatch(r"[^_]+_(.+)_\d+", item_id)
    return found.group(1) if found else None


def options_of(item: Item) -> dict[str, str]:
    """By letter the options' texts."""
    given = item.get("index2ans")
    if isinstance(given, Mapping):
        return {str(letter): as_text(text) for letter, text in given.items() if text is not None}
    options = item.get("options")
    return {} if options is None else dict(zip(ascii_uppercase, option_list(options), strict=False))


def _is_choice(item: Item) -> bool:
    return item.get("question_type", _CHOICE) == _CHOICE


def _golds(answer: Any) -> list[str]:
    """One right answer, or several where the data lists them (the hub's as a Python list in a text)."""
    if isinstance(answer, str) and answer.startswith("["):
        answer = option_list(answer)
    return [as_text(gold) for gold in answer] if isinstance(answer, list | tuple) else [as_text(answer)]
