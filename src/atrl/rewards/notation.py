r"""How answers are written: multiple-choice letters, words and mathematics, and the last of them as clean LaTeX.

math-verify falls back to whatever number it finds where it can't parse the LaTeX around it: it reads ``8√{3}`` as 8, ``1 2`` as
1 + 2. Answers are therefore rewritten first, by the rules of this file, and what can't be read stays unread. Nothing here
is applied to more than `MAX_ANSWER` characters of a response, which bounds the time of every regular expression.
"""

from __future__ import annotations

import re
from enum import StrEnum

from atrl.rewards.exact import normalise

MAX_ANSWER = 1000
"""Characters; a longer answer is not an answer, and is never parsed."""


class Kind(StrEnum):
    """How a gold answer is compared."""

    LETTER = "letter"  # with the letter that the answer starts with
    WORDS = "words"  # as text
    MATHS = "maths"  # by math-verify


_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*\{([^{}]*)\}"
)
_MATH_MARKS = re.compile(r"\\\\|\\[()\[\]$]|\$")
_CALLED = re.compile(r"^(?:(?:the|final|correct|option|choice|answer|is)\b\s*:?\s*)+", re.IGNORECASE)

_LETTER = re.compile(r"\(?\s*([A-J])\s*\)?\s*[.:]?")
_LED_BY_LETTER = re.compile(r"(?:\(\s*([A-J])\s*\)|([A-J])\s*[.:)])(?=\s|$)")
_RELATIONS = {">", "<", "=", r"\le", r"\ge", r"\ne"}
_NOT_WORDS = re.compile(r"[0-9\\$^_=+*/<>|{}]")
_PROSE_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")

_SYMBOLS = {
    "−": "-", "–": "-", "，": ",", "：": ":", "；": ";", "（": "(", "）": ")", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "π": r"\pi ",
    "∞": r"\infty ", "∅": r"\emptyset ", "∠": r"\angle ", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "²": "^{2}", "³": "^{3}",
    "′": "'",
}  # fmt: skip
_SYNONYMS = (
    (r"\\leq\b", r"\\le"),
    (r"\\geq\b", r"\\ge"),
    (r"\\neq\b", r"\\ne"),
    (r"\\lt\b", "<"),
    (r"\\gt\b", ">"),
)

_DEGREE = r"\s*(?:\{\s*\})?\s*(?:\^\s*\{?\s*\\circ\b\s*\}?|\\degree\b|°)\s*"
_LENGTH = r"(?:mm|cm|dm|km|m)(?:\s*\^\s*\{?\s*[23]\s*\}?)?"
_SPACE = r"(?:\s|\\[,;:! ]|~)"
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        *_SYNONYMS,
        (r"\\(?:text|mathrm|mathit|rm)\s*\{\s*([A-Za-z])\s*\}", r"\1"),
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s*([0-9]+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"√\s*\{", r"\\sqrt{"),
        (r"\\([dtc]?frac)\s*([0-9])\s*([0-9])", r"\\\1{\2}{\3}"),
        (rf"([0-9]+){_DEGREE}([0-9]+)\s*(?:'|\^\s*\{{?\s*\\prime\s*\}}?)", r"(\1+\\frac{\2}{60})"),
        (_DEGREE, " "),
    )
)
_THOUSANDS = re.compile(rf"(?<![0-9.,])[0-9]{{1,3}}(?:{_SPACE}[0-9]{{3}})+(?![0-9])")
_TRAILING_UNIT = re.compile(
    rf"(?<=[0-9}})i]){_SPACE}*(?:{_LENGTH}|\\(?:text|mathrm)\s*\{{{_SPACE}*{_LENGTH}\s*\}}(?:\s*\^\s*\{{?\s*[23]\s*\}}?)?"
    rf"|[\u4e00-\u9fff]+)$"
)
_SIDE_BY_SIDE = re.compile(rf"[0-9]{_SPACE}+[0-9]")
_RATIO = re.compile(r"[^:]+(?::[^:]+){2,}")
_BLANKS = re.compile(r"\n|(?<=\$)\s+(?=\$)")
_BLANKS_GIVEN = re.compile(r"\n|[,;，；、]|\band\b|\\\\|\\quad|\\text\s*\{\s*and\s*\}")


def blanks(gold: str) -> list[str]:
    """The answers to the blanks of one question, in order: on lines of their own, or formulas side by side."""
    return [part for part in map(str.strip, _BLANKS.split(gold.strip())) if part]


def given_blanks(answer: str) -> list[str]:
    """What a response gives for several blanks: separated by commas, semicolons, line breaks or "and"."""
    return [part for part in map(str.strip, _BLANKS_GIVEN.split(answer)) if part]


def kind_of(gold: str) -> Kind:
    """How `gold` is to be compared.

    A letter is one of A to J, alone or in parentheses. Words have no digit and no sign of mathematics, and at least
    two letters in a row (so that ``x`` is mathematics); a lone relation sign counts as a word.
    """
    bare = as_text(gold)
    if _LETTER.fullmatch(bare):
        return Kind.LETTER
    if bare in _RELATIONS:
        return Kind.WORDS
    looks_worded = bool(_PROSE_WORD.search(bare)) or not re.search("[A-Za-z]", bare)
    wrapped = "$" in gold and not _TEXT.search(gold)
    return Kind.WORDS if looks_worded and not wrapped and not _NOT_WORDS.search(bare) else Kind.MATHS


def as_text(answer: str) -> str:
    r"""`answer` without LaTeX marks around or inside it: ``$\text{Yes}$`` is ``Yes``, ``≥`` is ``\ge``."""
    text = _MATH_MARKS.sub(_keep_line_break, answer)
    text = _TEXT.sub(r"\1", text).replace("*", " ")
    for sign, latex in _SYMBOLS.items():
        text = text.replace(sign, latex)
    for pattern, replacement in _SYNONYMS:
        text = re.sub(pattern, replacement, text)
    return " ".join(text.split()).removesuffix(".").strip()


def same_words(gold: str, answer: str) -> bool:
    """Whether two answers are the same text, up to `exact.normalise` and LaTeX text marks."""
    return normalise(as_text(gold)) == normalise(as_text(answer))


def choice_letter(answer: str) -> str | None:
    r"""The letter A to J that an answer chooses: ``B``, ``(B)``, ``b``, ``B. 12 cm``, ``\text{B}``, ``Answer: B``; else None."""
    text = _CALLED.sub("", as_text(answer))
    if alone := _LETTER.fullmatch(text.upper()):
        return alone.group(1)
    led = _LED_BY_LETTER.match(text)
    return (led.group(1) or led.group(2)) if led else None


def is_prose(answer: str) -> bool:
    """Whether `answer` is a sentence with the answer somewhere in it, rather than the answer."""
    return len(_PROSE_WORD.findall(_TEXT.sub(r"\1", answer))) >= 3


def to_latex(answer: str) -> str | None:
    r"""`answer` as one LaTeX formula in dollars, or None if it has none that means what it looks like.

    Marks around formulas, a final period, degree signs (minutes become a fraction) and a unit of length, area or volume at the end
    go; Unicode signs become commands; ``1 234`` is 1234, but other numbers side by side are no formula; a ratio of three or more
    terms is a tuple; a percent sign at the end stays outside of the dollars, where math-verify knows it.
    """
    text = _MATH_MARKS.sub(_keep_line_break, answer)
    for sign, latex in _SYMBOLS.items():
        text = text.replace(sign, latex)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _THOUSANDS.sub(lambda number: re.sub("[^0-9]", "", number.group()), text)
    text = _CALLED.sub("", " ".join(text.split())).removesuffix(".").strip()
    percent = re.search(r"\\?%$", text)
    text = text[: percent.start()].strip() if percent else text
    if not _has_variable(head := _TRAILING_UNIT.sub("", text)):
        text = head.strip()
    if not text or _SIDE_BY_SIDE.search(text):
        return None
    if _RATIO.fullmatch(text):
        text = f"({text.replace(':', ',')})"
    return f"${text}$%" if percent else f"${text}$"


def _has_variable(latex: str) -> bool:
    return bool(re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", latex)))


def _keep_line_break(mark: re.Match[str]) -> str:
    return mark.group() if mark.group() == r"\\" else ""
