r"""Whether an answer commits itself to one value that doesn't contradict itself.

math-verify takes the last number of a sentence whatever the words say, compares the right side of an equation
whatever stands on its left, and drops a subscript. Three rules come before it:

- A sentence that denies ("not", "except", "rule out", "other than 5"), leaves several values open ("3 or 4",
  "between 3 and 5", "0-5", "x > 5") or holds numbers that are not of one formula gives no answer (`commits`).
- Plain numbers that an answer sets equal must be equal: ``6=5`` says nothing (`contradicts`).
- A number in a base (``12_{3}``) is that number only where the gold is written with the same base (`base`).

They go by words and signs, not by meaning, so "not 3, but 5" is lost as well. They are for marked answers, not for
whole responses, in which math-verify looks for the last formula or number. Nothing here sees more than
`notation.MAX_ANSWER` characters.
"""

from __future__ import annotations

import re
from fractions import Fraction

from atrl.rewards.notation import unmarked

_ORDINAL = r"(?:st|nd|rd|th)\b"
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_#.,])(?<!_\{)"  # what stands behind these is of a name, as in x_1
    r"(?:(?<![\w)}\]°%])-)?(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)" + rf"(?!\d|{_ORDINAL})"
)
_PLAIN = re.compile(r"[-+]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
_BASE = re.compile(r"(?<![\w^.])\(?\d[\d,.]*\)? ?_ ?(\{[^{}]*\}|\w)")

_SIGN = re.compile(r"[-+*/^=≈√_]|\\[A-Za-z]|^[)}]*[({]|^ ?:")
_UNIT = re.compile(r"^[)}]* ?[A-Za-z]+(?=[\s)}]*[-+*/^=≈])")
_BEFORE = re.compile(r"(?:\\[A-Za-z]+ ?\S*|\S*\s*[-+*/^√=]\s*|\S+)$")
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:[A-Z]+|sqrt|sin|cos|tan|log|ln)\b)[A-Za-z]{2,}")
_EQUAL = re.compile(r"(?<![<>!:])=(?!>)|\\equiv\b")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_CONCLUDES = re.compile(r"(?=.*\d)(?:\W*(?:so|thus|hence|therefore)\b|.*\banswer\b)", re.IGNORECASE)
_DENIAL = re.compile(
    r"n't\b|\b(?:not|cannot|never|none|neither|nor|except\w*|exclud\w*|wrong|incorrect|impossible)\b"
    r"|\bno\b(?!\.| doubt)"  # "no." is a number
    r"|\brul(?:e|es|ed|ing) (?:\S+ )?out\b|\b(?:any|all|every)\w* but\b|\bthan\b[^\w,]*\d",
    re.IGNORECASE,
)
_INEQUALITY = r"(?:<|(?<![-=])>|\\(?:le|ge|ne|lt|gt|leq|geq|neq)\b|\\not ?=|!=)=?"
_OPEN = re.compile(
    rf"{_INEQUALITY} ?-?[.\d]|\d ?{_INEQUALITY}"
    r"|\bbetween\b(?: \w+ and\b)?[^\w,]*\d"
    r"|\d[^\w\s]*(?: [A-Za-z]+)?,? or\b(?! so\b)|\bor(?: \\?[A-Za-z]+)?[^\w,]*\d",
    re.IGNORECASE,
)
_RANGE = re.compile(r"\d[\d.,]*[A-Za-z°%]*-\d[\d.,]*")
_SEVERAL = re.compile(rf"[,;]|\\pm\b|±|\b(?:or|and)\b|{_INEQUALITY}")


def conclusion(text: str) -> str:
    """The last sentence of `text`, if it gives a number as what follows or as the answer; otherwise all of it."""
    last = _SENTENCE_END.split(text.strip())[-1]
    return last if _CONCLUDES.match(last) else text


def commits(sentence: str, gold: str) -> bool:
    """Whether `sentence` asserts one value, or as many as there may be where `gold` holds several itself.

    Numbers are of one formula where signs of mathematics join them, or brackets and commas. The same value
    said twice is one; what stands left of a formula's last equals sign is no value of its own; nor are ordinals
    and the numbers of names (``x_1``, ``∠2``).
    """
    text = _plain(sentence)
    if _DENIAL.search(text):
        return False
    if _SEVERAL.search(re.sub(r"(?<=\d),(?=\d{3})", "", gold)):
        return True
    formulas = _formulas(text)
    values = {_value(formula) for formula in formulas}
    ranges = any("=" not in formula and _RANGE.fullmatch(_value(formula)) for formula in formulas)
    return len(values) <= 1 and not ranges and not _OPEN.search(text)


def contradicts(answer: str, gold: str) -> bool:
    """Whether a formula in `answer` sets unequal plain numbers equal, unless `gold` is an equation too."""
    return "=" not in gold and any(_is_false(formula) for formula in _formulas(_plain(answer)))


def base(answer: str) -> str | None:
    r"""The subscript of the last number that has one: ``3`` of ``12_{3}``; None of ``x_{3}``, which is a name."""
    found = _BASE.findall(_plain(answer))
    return found[-1].strip("{} ") if found else None


def _plain(answer: str) -> str:
    """One line without marks of formulas, text, bold face and HTML, with "=" for "equals" and angle_1 for ∠1."""
    text = re.sub(r"</?[a-z]+>|(?<!\d)\*\*|\*\*(?!\d)", " ", unmarked(answer)).replace("’", "'")
    text = re.sub(r"\bis equal to\b|\bequals\b", " = ", text)
    text = " ".join(re.sub(r"(\\[A-Za-z]+)", r"\1 ", text).split())
    return re.sub(r"(?<=[({_]) | (?=[)}])", "", re.sub(r"(?<=angle) (?=\d)", "_", text, flags=re.IGNORECASE))


def _formulas(text: str) -> list[str]:
    """From what leads to the first number of each formula in `text` to its last number."""
    spans: list[tuple[int, int]] = []
    for number in _NUMBER.finditer(text):
        if spans and _joined(text, spans[-1][1], number.start()):
            spans[-1] = spans[-1][0], number.end()
        else:
            before = _BEFORE.search(text, spans[-1][1] if spans else 0, number.start())
            spans.append((before.start() if before else number.start(), number.end()))
    return [text[start:end] for start, end in spans]


def _joined(text: str, end: int, start: int) -> bool:
    """Whether the numbers that end and start there are of one formula, by what stands between them."""
    between = text[end:start]
    if between.strip() == ",":
        before = text[:end]
        return sum(map(before.count, "([{")) > sum(map(before.count, ")]}"))
    apart = re.search(rf"[,;]|(?<! ): |\.\s|{_INEQUALITY}", between) or _WORD.search(_UNIT.sub("", between))
    return not apart and bool(_SIGN.search(between))


def _value(formula: str) -> str:
    value = _bare("".join(re.split(r"=|≈|\\(?:equiv|approx)\b", formula)[-1].split()))
    return str(_number(value)) if _PLAIN.fullmatch(value) else value


def _is_false(formula: str) -> bool:
    sides = map(_bare, _EQUAL.split(formula))
    return len({_number(side) for side in sides if _PLAIN.fullmatch(side)}) > 1


def _bare(side: str) -> str:
    bare = side.strip("{} °")
    return bare[1:].removesuffix(")") if bare.startswith("(") else bare


def _number(plain: str) -> Fraction:
    return Fraction(plain.replace(",", ""))
