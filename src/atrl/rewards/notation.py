r"""How answers are written: multiple-choice letters, words and mathematics, which is made clean LaTeX.

Where math-verify can't parse a formula it falls back to a number within: ``8√{3}`` is 8 to it; and ``1 2`` is
1 + 2. So answers are first rewritten by the rules of this file, and what can't be read stays unread. Nothing
here sees more than `MAX_ANSWER` characters of a response, which bounds the time of the regular expressions.
"""

from __future__ import annotations

import re
from enum import StrEnum

from atrl.rewards.exact import normalise

MAX_ANSWER = 1000
"""Characters; what is longer is no answer, and is never parsed."""


class Kind(StrEnum):
    """How a gold answer is compared."""

    LETTER = "letter"  # with the letter that the answer starts with
    WORDS = "words"  # as text
    MATHS = "maths"  # by math-verify


_TEXT_MARKS = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*"
_TEXT = re.compile(_TEXT_MARKS + r"\{([^{}]*)\}")
_MATH_MARKS = re.compile(r"\\\\|\\[()\[\]$]|\$")
_CALLED = re.compile(r"^(?:(?:the|final|correct|option|choice|answer|is)\b ?:? ?)+", re.IGNORECASE)

LETTER = re.compile(r"[(\[{]? ?([A-J]) ?[)\]}]? ?[.:]?")
_RELATIONS = {">", "<", "=", r"\le", r"\ge", r"\ne"}
_NOT_IN_WORDS = re.compile(r"[0-9\\$^_=+*/<>|{}]")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_PROSE_WORDS = 3

_SIGNS = str.maketrans({
    "−": "-", "–": "-", "，": ",", "：": ":", "；": ";", "（": "(", "）": ")", "′": "'",
    "²": "^{2}", "³": "^{3}",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ",
    "π": r"\pi ", "∞": r"\infty ", "∅": r"\emptyset ", "∠": r"\angle ",
})  # fmt: skip
_SYNONYMS = (
    (r"\\leq\b", r"\\le"),
    (r"\\geq\b", r"\\ge"),
    (r"\\neq\b", r"\\ne"),
    (r"\\lt\b", "<"),
    (r"\\gt\b", ">"),
)

_DEGREE = r" ?(?:\{ ?\})? ?(?:\^ ?\{? ?\\circ\b ?\}?|\\degree\b|°) ?"
_PRIME = r"(?:'|\^ ?\{? ?\\prime\b ?\}?)"
_REWRITES = (
    *_SYNONYMS,
    (_TEXT_MARKS + r"\{ ?([A-Za-z]) ?\}", r"\1"),
    (r"√ ?\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"√ ?([0-9]+(?:\.[0-9]+)?|[A-Za-z])", r"\\sqrt{\1}"),
    (r"√ ?\{", r"\\sqrt{"),
    (r"\\([dtc]?frac) ?([0-9]) ?([0-9])", r"\\\1{\2}{\3}"),
    (rf"([0-9]+){_DEGREE}([0-9]+) ?{_PRIME}", r"(\1+\\frac{\2}{60})"),
    (_DEGREE, " "),
)
_SPACE = r"(?:\s|\\[,;:! ]|~)"
_THOUSANDS = re.compile(rf"(?<![0-9.,])[0-9]{{1,3}}(?:{_SPACE}[0-9]{{3}})+(?![0-9])")
_SIDE_BY_SIDE = re.compile(rf"[0-9]{_SPACE}+[0-9]")
_RATIO = re.compile(r"[^:]+(?::[^:]+){2,}")

_POWER = r"(?: ?\^ ?\{? ?[23] ?\}?)?"
_LENGTH = r"(?:mm|cm|dm|km|m)" + _POWER
_MARKED_LENGTH = _TEXT_MARKS + rf"\{{{_SPACE}*{_LENGTH} ?\}}{_POWER}"
_CLAIMED = "不非没错或以"  # "not", "wrong", "or", "more than": no unit, but for `claims`
_TRAILING_UNIT = re.compile(
    rf"(?<=[0-9}})i]){_SPACE}*(?:{_LENGTH}|{_MARKED_LENGTH}|(?:(?![{_CLAIMED}])[\u4e00-\u9fff])+)$"
)

_METRIC = re.compile(r"(mm|cm|dm|km|m)[^23]*([23])?")

_BLANKS = re.compile(r"\n|(?<=\$)\s+(?=\$)")
_BLANKS_GIVEN = re.compile(
    r"(?P<open>\\\{|[(\[{])|(?P<close>\\\}|[)\]}])"
    r"|\n|[,;，；、]|\band\b|\\\\|\\quad|\\text\s*\{\s*and\s*\}|(?<=\$)\s+(?=\$)"
)


def blanks(gold: str) -> list[str]:
    """The answers to the blanks of one question, in order: lines of the gold, or formulas side by side."""
    return [part for part in map(str.strip, _BLANKS.split(gold.strip())) if part]


def given_blanks(answer: str) -> list[str]:
    """What a response gives for several blanks: separated by commas, semicolons, line breaks or "and".

    Separators in brackets, like the comma of ``(1, 2)``, don't count.
    """
    parts, start, depth = [], 0, 0
    for mark in _BLANKS_GIVEN.finditer(answer):
        if mark["open"]:
            depth += 1
        elif mark["close"]:
            depth -= 1
        elif depth == 0:
            parts.append(answer[start : mark.start()])
            start = mark.end()
    return [part for part in map(str.strip, [*parts, answer[start:]]) if part]


def kind_of(gold: str) -> Kind:
    """How `gold` is to be compared.

    A letter is one of A to J, alone or in parentheses. Words have neither digits nor signs of mathematics,
    and at least two letters in a row (``x`` is mathematics); a lone relation sign counts as a word.
    """
    bare = as_text(gold)
    if LETTER.fullmatch(bare):
        return Kind.LETTER
    if bare in _RELATIONS:
        return Kind.WORDS
    worded = bool(_WORD.search(bare)) or not re.search("[A-Za-z]", bare)
    formula = "$" in gold and not _TEXT.search(gold)
    return Kind.WORDS if worded and not formula and not _NOT_IN_WORDS.search(bare) else Kind.MATHS


def as_text(answer: str) -> str:
    r"""`answer` without marks of formulas and text: ``$\text{Yes}$`` is ``Yes``, ``≥`` is ``\ge``."""
    text = _TEXT.sub(r"\1", _MATH_MARKS.sub(_keep_line_break, " ".join(answer.split()))).replace("*", " ")
    for pattern, replacement in _SYNONYMS:
        text = re.sub(pattern, replacement, text)
    return " ".join(_spell_signs(text).split()).removesuffix(".").strip()


def unmarked(answer: str) -> str:
    """`answer` with a space for each mark of a formula, text without its marks, and signs as commands."""
    return _spell_signs(_TEXT.sub(r" \1 ", _MATH_MARKS.sub(" ", answer)))


def same_words(gold: str, answer: str) -> bool:
    """Whether two answers are the same text, up to `exact.normalise` and marks of formulas and text."""
    return normalise(as_text(gold)) == normalise(as_text(answer))


def is_prose(answer: str) -> bool:
    """Whether `answer` is a sentence with the answer somewhere in it, rather than the answer."""
    return len(_WORD.findall(_TEXT.sub(r"\1", answer))) >= _PROSE_WORDS


def to_latex(answer: str) -> str | None:
    r"""`answer` as one LaTeX formula in dollars, or None if it has none that means what it looks like.

    Marks around formulas, a final period, degree signs (minutes become a fraction) and a unit of length, area
    or volume at the end go; Unicode signs become commands; ``1 234`` is 1234, but other numbers side by side
    are no formula; a ratio of three or more terms is a tuple; a percent sign at the end stays outside of the
    dollars, where math-verify knows it.
    """
    text = _rewritten(answer)
    percent = re.search(r"\\?%$", text)
    text = text[: percent.start()].strip() if percent else text
    text = _number_and_unit(text)[0]
    if not text or _SIDE_BY_SIDE.search(text):
        return None
    if _RATIO.fullmatch(text):
        text = f"({text.replace(':', ',')})"
    return f"${text}$%" if percent else f"${text}$"


def metric_unit(answer: str) -> str | None:
    """The unit of length, area or volume at the end of `answer`, as ``cm^2``; None without one that is metric."""
    unit = re.sub(r"\\[A-Za-z]+", "", _number_and_unit(_rewritten(answer))[1])
    found = _METRIC.search(unit)
    return f"{found.group(1)}^{found.group(2) or 1}" if found else None


def _rewritten(answer: str) -> str:
    text = _spell_signs(_MATH_MARKS.sub(_keep_line_break, " ".join(answer.split())))
    for pattern, replacement in _REWRITES:
        text = re.sub(pattern, replacement, text)
    text = _THOUSANDS.sub(lambda number: re.sub("[^0-9]", "", number.group()), text)
    return _CALLED.sub("", " ".join(text.split())).removesuffix(".").strip()


def _number_and_unit(text: str) -> tuple[str, str]:
    """What stands before a unit at the end, and the unit; all of it where letters before make a formula of it."""
    number = _TRAILING_UNIT.sub("", text)
    return (text, "") if _has_variable(number) else (number, text[len(number) :])


def _spell_signs(text: str) -> str:
    return text.translate(_SIGNS)


def _has_variable(latex: str) -> bool:
    return bool(re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", latex)))


def _keep_line_break(mark: re.Match[str]) -> str:
    return mark.group() if mark.group() == r"\\" else ""
