"""How answers are written: multiple-choice letters, words and mathematics, and the marks in them.

Nothing here sees more than `MAX_ANSWER` characters of a response, which bounds the time of the regular expressions.
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


TEXT_MARKS = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*"
TEXT = re.compile(TEXT_MARKS + r"\{([^{}]*)\}")
MATH_MARKS = re.compile(r"\\\\|\\[()\[\]$]|\$")
BOLD = re.compile(r"(?<![\w)\]}])\*\*|\*\*(?![\w(\[{\\-]|\.\d)")
"""Bold face of Markdown; other double stars are powers."""

LETTER = re.compile(r"[(\[{]? ?([A-J]) ?[)\]}]? ?[.:]?")
SPACE = r"(?:\s|(?<!\\)\\[,;:! ]|~)"
_MIXED = re.compile(rf"(?<![\w.,/^)}}\]])(?<![0-9] )([0-9]+){SPACE}+([0-9]{{1,2}})/([0-9]+)(?![0-9/])")
_RELATIONS = {">", "<", "=", r"\le", r"\ge", r"\ne"}
_NOT_IN_WORDS = re.compile(r"[0-9\\$^_=+*/<>|{}]")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_PROSE_WORDS = 3

_SIGNS = str.maketrans({
    "−": "-", "–": "-", "，": ",", "：": ":", "；": ";", "（": "(", "）": ")", "′": "'",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ",
    "π": r"\pi ", "∞": r"\infty ", "∅": r"\emptyset ", "∠": r"\angle ",
})  # fmt: skip
_FRACTIONS = str.maketrans({"½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4"})
_RAISED = re.compile("⁻?[⁰¹²³⁴-⁹]+")
_LOWERED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
SYNONYMS = (
    (r"\\leq\b", r"\\le"),
    (r"\\geq\b", r"\\ge"),
    (r"\\neq\b", r"\\ne"),
    (r"\\lt\b", "<"),
    (r"\\gt\b", ">"),
)

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
    formula = "$" in gold and not TEXT.search(gold)
    return Kind.WORDS if worded and not formula and not _NOT_IN_WORDS.search(bare) else Kind.MATHS


def as_text(answer: str) -> str:
    r"""`answer` without marks of formulas and text: ``$\text{Yes}$`` is ``Yes``, ``≥`` is ``\ge``."""
    text = TEXT.sub(r"\1", MATH_MARKS.sub(keep_line_break, " ".join(answer.split()))).replace("*", " ")
    for pattern, replacement in SYNONYMS:
        text = re.sub(pattern, replacement, text)
    return " ".join(spell_signs(text).split()).removesuffix(".").strip()


def unmarked(answer: str) -> str:
    """`answer` with a space for each mark of a formula, text without its marks, and signs as commands."""
    return spell_signs(TEXT.sub(r" \1 ", MATH_MARKS.sub(" ", answer)))


def same_words(gold: str, answer: str) -> bool:
    """Whether two answers are the same text, up to `exact.normalise` and marks of formulas and text."""
    return normalise(as_text(gold)) == normalise(as_text(answer))


def is_prose(answer: str) -> bool:
    """Whether `answer` is a sentence with the answer somewhere in it, rather than the answer."""
    return len(_WORD.findall(TEXT.sub(r"\1", answer))) >= _PROSE_WORDS


def spell_mixed(text: str) -> str:
    """`text` with mixed numbers as sums: ``(2+1/2)`` for ``2 1/2`` and ``2½``, but ``2 3/2`` is none."""

    def total(number: re.Match[str]) -> str:
        whole, over, under = number.groups()
        return f"({whole}+{over}/{under})" if int(over) < int(under) else number.group()

    return _MIXED.sub(total, text.translate(_FRACTIONS))


def spell_signs(text: str) -> str:
    """`text` with signs as commands, and raised digits as powers."""
    text = _RAISED.sub(lambda digits: f"^{{{digits.group().translate(_LOWERED)}}}", text)
    return text.translate(_SIGNS)


def keep_line_break(mark: re.Match[str]) -> str:
    return mark.group() if mark.group() == r"\\" else ""
