r"""The number that a piece of an answer states: a plain one, or the value of a formula.

Units and their exponents go first. A formula within (``\frac{1}{2}``, ``3/4``, ``5\sqrt{3}``) counts as its value by
`latex_value`, and as no number where it has none, as ``2x + 3``: its digits are none either. Only what is short is
valued, and nothing with powers of powers or exponents beyond 999. Everything is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

from atrl.benchmarks.latex_value import NoValue, latex_value

LONGEST_FORMULA = 200
"""Characters of a formula that is valued."""

_NUMBER = re.compile(r"(?<![A-Za-z0-9_.])-?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)?(?:\.\d+)?(?:[eE][+-]?\d{1,3})?")
_COUNTED = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_WORDS = {word: number for number, word in enumerate(_COUNTED)}
_NUMBER_WORD = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)

_TEXT_MARK = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:bf|it|rm|sf)|mbox|operatorname) ?\{([^{}]{0,200})\}")
_EQUALS = re.compile(r"=|≈|\\approx(?![A-Za-z])")
_SPACING = re.compile(r"\\(?:q?quad|displaystyle)(?![A-Za-z])|\\ |~")
_NOTHING = re.compile(r"\\[,;:!()\[\]]|\\(?:left|right)(?![A-Za-z])|\\?\$")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\})\d{3})+(?![\d,])")
_DEGREE = re.compile(r" ?(?:\^ ?\{? ?\\(?:circ|degree)(?![A-Za-z]) ?\}?|\\degree(?![A-Za-z])|°|\\?%)(?: ?[CF]\b)?")
_EXPONENT = r"(?: ?\^ ?(?:\{ ?-?[1-9] ?\}|-?[1-9])|[²³])"
_UNIT_NAME = rf"(?:[A-Za-z]{{2,20}}{_EXPONENT}|(?:[cdkm]?m|ms|[km]g|m[lL]|[mgshlLNJWVAKC])(?![A-Za-z]){_EXPONENT}?)"
_PER = rf"(?: ?[/·*] ?[A-Za-z]{{1,20}}{_EXPONENT}?| ?{_UNIT_NAME})"
_UNIT = re.compile(
    rf"(?<=[\d)}}]) ?{_UNIT_NAME}{_PER}{{0,3}}(?![A-Za-z]| ?[+*(^_\d\\]| ?- ?(?:[\d\\(]|[A-Za-z](?![A-Za-z])))"
)
_SIGNS = str.maketrans({
    "−": "-", "√": r"\sqrt ", "π": r"\pi ", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "²": "^{2}", "³": "^{3}",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
})  # fmt: skip

_TERM = r"(?:\\(?:[dtc]?frac|sqrt|pi|times|cdot|div)(?![A-Za-z])|[\d.{}()\[\]^/*+-])"
_RUN = re.compile(rf"{_TERM}(?: ?{_TERM})*")
_FORMULA = re.compile(r"\\[A-Za-z]|[\^{}]|[\d)] ?[/*+] ?[\d(\\]")
_DIFFERENCE = re.compile(r"[\d)}] ?- ?[\d(\\]")
_LEFT_OVER = re.compile(r"\\[A-Za-z]|[\^_{}!|<>]")
_TUPLE = re.compile(r"[(\[][^,]{0,200},.{0,1000}[)\]]")
_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|log|ln|exp|lg)(?:_\S{1,4})? ?\{?$")
_LAST_LETTER = re.compile(r"(?:^|[^A-Za-z\\])[A-Za-z]$")
_LONE_LETTER = re.compile(r"[A-Za-z](?![A-Za-z])")
_TOO_LARGE = re.compile(r"\^ ?\{? ?-?\d{4}|\^ ?\{[^{}]*\^|\d{40}")


class NoNumber(Exception):
    """The text is mathematics without a value."""


def number_in(text: str, *, last: bool = False, marked: bool = False, announced: bool = False) -> str | None:
    """The first number of `text` (or its last), written so that ``float`` reads it; None where that is none.

    Of an equation it is a number of its right side. Thousands separators and a dollar sign go; "three" is 3.

    Args:
        text: a piece of a response.
        last: takes the last number.
        marked: `text` is the answer and nothing else: differences are worked out too.
        announced: `text` begins with the answer.

    Raises:
        NoNumber: if the number of a marked or announced text is mathematics without a value, or variables are anywhere
            in a marked one.
    """
    text = _tidy(text)
    if marked:
        _refuse_what_has_no_value(text)
    found = list(_numbers(text, marked=marked))
    place = -1 if last else 0
    if not found:
        words = _NUMBER_WORD.findall(text)
        return str(_WORDS[words[place].lower()]) if words else None
    number = found[place]()
    if (marked and _no_number in found) or (number is None and (marked or announced)):
        raise NoNumber
    return number


def _tidy(text: str) -> str:
    """The right side of `text` in LaTeX's own signs, without units, marks of text and what only spaces out."""
    text = _EQUALS.split(" ".join(text.split()))[-1].replace("**", " ")
    text = _NOTHING.sub("", _SPACING.sub(" ", _TEXT_MARK.sub(r"\1", text)))
    text = _THOUSANDS.sub(lambda number: re.sub("[^0-9]", "", number.group()), text)
    text = _UNIT.sub("", _DEGREE.sub("", text))
    return " ".join(text.translate(_SIGNS).split())


def _refuse_what_has_no_value(text: str) -> None:
    if _TUPLE.fullmatch(text.rstrip(".")) or _LEFT_OVER.search(_RUN.sub(" ", text)):
        raise NoNumber


def _numbers(text: str, *, marked: bool) -> Iterator[Callable[[], str | None]]:
    """Each number and each formula in order, as a function that works out the value, which takes milliseconds."""
    read = 0
    for run in _RUN.finditer(text):
        formula = run.group()
        if run.start() < read or not (any(sign.isdigit() for sign in formula) or "\\pi" in formula):
            continue
        if _is_bound(text, run):
            yield _no_number
        elif _FORMULA.search(inner := _unwrapped(formula)) or (marked and _DIFFERENCE.search(inner)):
            yield partial(_valued, inner)
        else:
            for number in _plain_numbers(text, run):
                read = number.end()
                yield partial(str.replace, number.group(), ",", "")


def _no_number() -> None:
    return None


def _plain_numbers(text: str, run: re.Match[str]) -> Iterator[re.Match[str]]:
    """The numbers that begin in `run`; ``1e-5`` ends behind it."""
    place = run.start()
    while place < run.end():
        found = _NUMBER.match(text, place)
        if found and any(sign.isdigit() for sign in found.group()):
            yield found
        place = max(place + 1, found.end() if found else 0)


def _is_bound(text: str, run: re.Match[str]) -> bool:
    """Whether letters or digits beside a run of signs make it a part of more: ``2x``, ``x + 2``, ``1:2``."""
    formula = run.group()
    before, after = text[max(0, run.start() - 16) : run.start()], text[run.end() : run.end() + 4]
    if re.search(r"\d ?: ?$", before) or re.match(r" ?: ?\d", after) or _FUNCTION.search(before):
        return True
    if _LONE_LETTER.match(after) and not re.match(r"[eE][+-]?\d", after):
        return True
    if formula[-1] in "+*/^" and _LONE_LETTER.match(after.lstrip()):
        return True
    if _LAST_LETTER.search(before.rstrip() if formula[0] in "+*/^-" else before) and not formula[0].isdigit():
        return formula[0] != "."
    torn = formula.count("{") != formula.count("}")
    return torn and (before.rstrip()[-1:].isalpha() or after[:1].isalpha())


def _unwrapped(formula: str) -> str:
    """`formula` without brackets at its ends that have no partner, and signs of punctuation."""
    formula = formula.rstrip(" .*/+-[({").lstrip(" */+)]}")
    for opening, closing in ("()", "{}", "[]"):
        while formula.startswith(opening) and formula.count(opening) > formula.count(closing):
            formula = formula[1:].lstrip()
        while formula.endswith(closing) and formula.count(closing) > formula.count(opening):
            formula = formula[:-1].rstrip(" .")
    return formula


def _valued(formula: str) -> str | None:
    if len(formula) > LONGEST_FORMULA or _TOO_LARGE.search(formula) or _powers_of_powers(formula):
        return None
    formula = re.sub(r"\\[dtc]frac", r"\\frac", formula)
    formula = re.sub(r"\\frac ?(\d) ?(\d)", r"\\frac{\1}{\2}", formula)
    formula = re.sub(r"\\frac ?(\d) ?\{", r"\\frac{\1}{", formula)
    formula = re.sub(r"\\sqrt ?(\d+)", r"\\sqrt{\1}", formula)
    formula = re.sub(r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}", formula)
    if formula.startswith("^") or formula.count("{") != formula.count("}") or re.search(r"\d \d", formula):
        return None
    try:
        value = latex_value(formula)
        return str(value) if abs(value) < 1e15 else repr(float(value))
    except (NoValue, OverflowError):
        return None


def _powers_of_powers(formula: str) -> bool:
    return formula.count("^") > 1 and re.search(r"[)}] ?\^", formula) is not None
