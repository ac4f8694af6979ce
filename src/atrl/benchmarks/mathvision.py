r"""MathVision (Wang et al., NeurIPS 2024, arXiv 2402.14804): competition mathematics with pictures.

Extraction and comparison are those of `evaluation/evaluate.py` and `evaluation/utils.py` of
https://github.com/mathllm/MATH-V, quirks included; what its code evaluates as Python is worked out by sympy in a
worker with limits (`latex_value.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atrl.benchmarks.base import Benchmark, Columns, Item, Scored, option_list
from atrl.benchmarks.latex_value import NoValue, latex_value

if TYPE_CHECKING:
    import numpy as np

    from atrl.benchmarks.figures import Figure, Units

_LETTERS = "ABCDE"
_FLAGS = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
_CLEANED = (
    *((" ", ""), ("\\,", ""), ("∞", "\\infty"), ("+\\infty", "\\infty"), ("\\\\", "\\"), ("\n", "")),
    *(("\\text", ""), ("\\mbox", ""), ("bmatrix", "pmatrix"), ("\\left", ""), ("\\right", "")),
    *(("^{\\circ}", ""), ("^\\circ", ""), ("{m}^3", ""), ("m^3", ""), ("{units}", ""), ("units", "")),
    *(("{km}", ""), ("km", "")),
)
_STRIPPED = (
    *(("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", "")),
    *(("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""), ("$", "")),
)
_COLUMNS: Columns = {
    "id": "id",
    "answer": "answer",
    "options": "options",
    "question": "question",
    "level": "level",
    "subject": "subject",
    "image": ["decoded_image", "image"],
}


def find_answer(response: str) -> str:
    """The answer in a response, in lower case, as the authors find it."""
    text = response.strip()
    for letter in _LETTERS:
        ends = (f" {letter}.", f" ({letter}).")
        starts = (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        if text.endswith(ends) or text.startswith(starts):
            text = letter
    after_is = text.split("is ")[-1].rstrip(".")
    if _is_float(after_is):
        text = after_is
    if "oxed{" not in text:
        text = _after_flags(text)
    elif text.count("oxed{") > 1:
        text = "\\boxed{" + text.split("oxed{")[-1]
    answer = clean(text)
    for letter in "abcde":
        answer = answer.replace(f"({letter})", letter)
    for letter in "abcde":
        answer = answer.replace(f"{{{letter}}}", letter)
    return answer.rstrip(".").lstrip(":").strip()


def _after_flags(text: str) -> str:
    """What follows the phrases that announce an answer, each in turn, up to the end of its sentence."""
    for flag in _FLAGS:
        for spelling in (flag, flag.replace("the", "The")):
            _, found, after = text.rpartition(spelling)
            text = after.strip().split("\n")[0].split(". ")[0] if found else text.strip()
    return text


def clean(text: str) -> str:
    """The content of the box (the whole text without one), stripped of units, degrees and LaTeX's layout."""
    text = text.lower().replace("{}", "")
    start, end = text.find("oxed{"), text.rfind("}")
    if start >= 0 and start + 5 <= end:
        text = text[start + 5 : end]
    opened, closed = text.find("{"), text.find("}")
    if closed != -1 and (opened == -1 or closed < opened):
        text = text.split("}")[0]
    text = text.split("=")[-1].split("\\approx")[-1]
    for old, new in _CLEANED:
        text = text.replace(old, new)
    return _strip(text)


def _strip(text: str) -> str:
    for old, new in _STRIPPED:
        text = text.replace(old, new)
    text = text.split("\\text{ ")[0]
    for old, new in (("\\%", ""), (" .", " 0."), ("{.", "{0.")):
        text = text.replace(old, new)
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    for sign in ("=", "\\approx"):
        parts = text.split(sign)
        text = parts[-1] if len(parts) == 2 else text
    if "sqrt" in text:
        text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)
    text = text.replace(" ", "")
    if "sqrt" in text:
        text = _braced_fractions(text)
    if text == "0.5":
        return "\\frac{1}{2}"
    slashed = re.fullmatch(r"(-?(?:0|[1-9][0-9]*))/(-?(?:0|[1-9][0-9]*))", text)
    return f"\\frac{{{slashed[1]}}}{{{slashed[2]}}}" if slashed else text


def _braced_fractions(text: str) -> str:
    r"""``\frac12`` as ``\frac{1}{2}``; the text as it was where a fraction is too short."""
    first, *rest = text.split("\\frac")
    for part in rest:
        if part.startswith("{"):
            first += "\\frac" + part
        elif len(part) < 2:
            return text
        else:
            below = part[1] if part[1] == "{" else f"{{{part[1]}}}"
            first += f"\\frac{{{part[0]}}}{below}{part[2:]}"
    return first


def equal(one: str, other: str) -> bool:
    """The authors' `is_equal`: the same text, the same tuple, or values that agree when rounded to two places.

    Letters' case is ignored. What can't be evaluated is never equal, however alike it looks; so the second is looked at
    only where the first has a value, which spares most choices (the gold is a letter) the parser.
    """
    one, other = one.lower(), other.lower()
    if not one.replace(" ", "") or not other.replace(" ", ""):
        return False
    if one.strip() == other.strip():
        return True
    one, other = _evaluated_tuple(one), _evaluated_tuple(other)
    if one == other:
        return True
    try:
        return round(latex_value(one), 2) == round(latex_value(other), 2)
    except NoValue:
        return False


def _evaluated_tuple(text: str) -> str:
    """``(1+1, 3)`` as ``(2,3)``; elements with infinities, ``a`` and ``-a`` stay. Anything else stays as it is."""
    parts = text[1:-1].split(",")
    brackets = text[0] + text[-1]
    if brackets not in ("()", "[]") or len(parts) < 2:
        return text
    try:
        rounded = [
            part if "infty" in part or part in ("a", "-a") else str(round(latex_value(part), 2)) for part in parts
        ]
    except NoValue:
        return text
    return f"{brackets[0]}{','.join(rounded)}{brackets[1]}"


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class MathVision(Benchmark):
    """3,040 problems, testmini 304 of them; the headline is the share that is right.

    A choice is right as its letter or as its option's value.
    """

    name = "mathvision"
    headline = "accuracy"
    uses_sympy = True
    hub: str = "MathLLMs/MathVision"
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))
    instruction: str = (
        'Please solve the problem and put your answer in one "\\boxed{}". If it is a multiple choice question, '
        'only one letter is allowed in the "\\boxed{}".'
    )

    def prompt(self, item: Item) -> str:
        """The instruction, the question and, as "(A) …" in lines, its options; ``<image1>`` marks are left out."""
        question = re.sub(r"\s*<image\d+>", "", str(item.get("question", "")))
        options = [f"({letter}) {text}" for letter, text in zip(_LETTERS, _options(item), strict=False)]
        return "\n".join([self.instruction, question, *options])

    def extract(self, response: str, item: Item) -> str | None:
        """As the authors find it; their code never answers nothing."""
        return find_answer(response) if response.strip() else None

    def judge(self, extraction: str | None, item: Item) -> Scored:
        """Right where it equals the gold or, of a choice, the value of the gold's option."""
        if extraction is None or not extraction.strip():
            return Scored(extraction, None, 0.0)
        golds = [item.gold, _option_value(item)]
        return Scored(extraction, extraction, float(any(equal(gold, extraction) for gold in golds)))

    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """Accuracy, by subject and by level."""
        score = values["score"]
        return [
            units.mean("accuracy", score),
            *units.means_by("subject/", score, [item.get("subject") for item in items]),
            *units.means_by("level/", score, [item.get("level") for item in items]),
        ]


def _options(item: Item) -> list[str]:
    options = item.get("options")
    return [] if options is None else option_list(options)


def _option_value(item: Item) -> str:
    options = _options(item)
    place = ord(item.gold) - ord("A") if len(item.gold) == 1 else -1
    return options[place] if 0 <= place < len(options) else ""
