r"""Mathematics as one LaTeX formula that math-verify reads as it is meant, and the unit behind it.

Where math-verify can't parse a formula it falls back to a number within: ``8√{3}`` is 8 to it; and ``1 2`` is
1 + 2. So answers are first rewritten by the rules of this file, and what can't be read stays unread. Nothing
here sees more than `notation.MAX_ANSWER` characters of a response, which bounds the time of the regular expressions.
"""

from __future__ import annotations

import re

from atrl.rewards.notation import (
    BOLD,
    MATH_MARKS,
    SPACE,
    SYNONYMS,
    TEXT,
    TEXT_MARKS,
    keep_line_break,
    spell_mixed,
    spell_signs,
)
from atrl.rewards.units import has_variable, split_unit

_CALLED = re.compile(
    r"^(?:(?:the|final|correct|option|choice|answer|is|approximately|about|around|roughly)\b ?:? ?"
    r"|(?:≈|~|\\approx\b) ?)+",
    re.IGNORECASE,
)
_AMOUNT = r"([0-9](?:[0-9.,{}]*[0-9])?)"
_DOLLARS = re.compile(rf"\$?\\\$ ?{_AMOUNT}\$?\.?|\$ ?{_AMOUNT}\.?")
_MONEY = re.compile(rf"([€£¥]) ?{_AMOUNT}\.?")

_DEGREE = r" ?(?:\{ ?\})? ?(?:\^ ?\{? ?\\circ\b ?\}?|\\degree\b|°) ?"
_TEMPERATURE = rf"(?:(?:{_DEGREE}|\b[Dd]egrees?){SPACE}*(?:{TEXT_MARKS}\{{ ?)?"
_PRIME = r"(?:'|\^ ?\{? ?\\prime\b ?\}?)"
_REWRITES = (
    *SYNONYMS,
    (r"√ ?\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"√ ?([0-9]+(?:\.[0-9]+)?|[A-Za-z])", r"\\sqrt{\1}"),
    (r"√ ?\{", r"\\sqrt{"),
    (r"\\([dtc]?frac) ?([0-9]) ?([0-9])", r"\\\1{\2}{\3}"),
    (rf"([0-9]+){_DEGREE}([0-9]+) ?{_PRIME}", r"(\1+\\frac{\2}{60})"),
    (rf"{_TEMPERATURE}(?:C|[Cc]elsius)\b ?\}}?)(?=\.?$)", " degC"),
    (rf"{_TEMPERATURE}(?:F|[Ff]ahrenheit)\b ?\}}?)(?=\.?$)", " degF"),
    (rf"{_DEGREE}(?=\.?$)", " degree"),
    (_DEGREE, " "),
    (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
    (r"^[A-Z] ?(?=\([^()]*,[^()]*\)$)", ""),  # the name of a point
    (r"(?<=[0-9]) ?(?:\\left)?(?=\( ?(?:\\[dt]?frac|[0-9]+ ?/))", r" \\cdot "),  # no mixed number
    (r"(?<=[0-9]) ?x ?(?=10 ?\^)", r"\\times "),
    (r"(?<![\w.\\])([0-9]+(?:\.[0-9]+)?)[eE]\+?(-?[0-9]{1,3})(?![\w.])", r"\1 \\times 10^{\2}"),
    (rf"(?<=[0-9]){SPACE}*(?:{TEXT_MARKS}\{{ ?)?per ?cent\b ?\}}?(?=\.?$)", "%"),
)
_THOUSANDS = re.compile(rf"(?<![0-9.,])[0-9]{{1,3}}(?:{SPACE}[0-9]{{3}})+(?![0-9])")
_SIDE_BY_SIDE = re.compile(rf"[0-9]{SPACE}+(?:[0-9]|\([0-9]+\+[0-9]+/)")
_RATIO = re.compile(r"[^:]+(?::[^:]+){2,}")

_CLAIMED = "不非没错或以"  # "not", "wrong", "or", "more than": no unit, but for `claims`
_CHINESE_UNIT = re.compile(rf"(?<=[0-9}})i]){SPACE}*(?:(?![{_CLAIMED}])[\u4e00-\u9fff])+$")


def read(answer: str, letters: bool = True) -> tuple[str | None, str | None]:
    r"""`answer` as one LaTeX formula in dollars, and its unit (see `units`); None for what it hasn't.

    No formula is what doesn't mean what it looks like. Marks around formulas and for bold face, a final period, the
    name of a point and units go; Unicode signs become commands, minutes a fraction of degrees, 3e8 a product;
    ``1 234`` is 1234 and ``2 1/2`` a sum, but other numbers side by side are no formula; a ratio of three or more terms
    is a tuple; a percent sign at the end stays outside of the dollars, where math-verify knows it.

    Args:
        answer: what is to be read.
        letters: whether letters may be variables: false for an answer to a gold that has none.
    """
    text = _rewritten(answer)
    percent = re.search(r"\\?%$", text)
    text = text[: percent.start()].strip() if percent else text
    flat = " ".join(re.sub(SPACE, " ", TEXT.sub(r" \1", text)).split())
    number, unit = split_unit(flat, letters)
    if number == flat:  # nothing taken off
        number = text.removesuffix(" degree")
        bare = _CHINESE_UNIT.sub("", number)
        number = number if has_variable(bare) else bare
    text = re.sub(TEXT_MARKS + r"\{ ?([A-Za-z]) ?\}", r"\1", number.strip())
    if not text or _SIDE_BY_SIDE.search(text):
        return None, unit
    if _RATIO.fullmatch(text):
        text = f"({text.replace(':', ',')})"
    return f"${text}$%" if percent else f"${text}$", unit


def to_latex(answer: str) -> str | None:
    """`answer` as one LaTeX formula in dollars, or None (see `read`)."""
    return read(answer)[0]


def _rewritten(answer: str) -> str:
    text = " ".join(answer.split())
    if money := _DOLLARS.fullmatch(text):
        text = f"{money.group(1) or money.group(2)} dollar"
    elif money := _MONEY.fullmatch(text):
        text = f"{money.group(2)} {money.group(1)}"
    text = BOLD.sub(" ", spell_signs(spell_mixed(MATH_MARKS.sub(keep_line_break, text)))).strip()
    if (first := TEXT.match(text)) and text.startswith((r"\text", r"\mbox")):
        text = (first.group(1) + text[first.end() :]).strip()
    for pattern, replacement in _REWRITES:
        text = re.sub(pattern, replacement, text)
    text = _THOUSANDS.sub(lambda number: re.sub("[^0-9]", "", number.group()), text)
    return _CALLED.sub("", " ".join(text.split())).removesuffix(".").strip()
