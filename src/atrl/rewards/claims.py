r"""Whether an answer commits itself to one value that doesn't contradict itself.

math-verify takes the last number of a sentence whatever the words say, compares the right side of an equation
whatever stands on its left, drops a subscript and, in a formula, what stands in ``\text{}`` and all that follows
it. Three rules come before it, for sentences and formulas:

- What denies ("not", "except", "rule out", "other than 5"), leaves several values open ("3 or 4", "between 3 and 5",
  "0-5", "x > 5"), multiplies it by a word ("5 hundred") or holds numbers that are not of one formula gives no answer
  (`commits`).
- Plain numbers of one unit, or of none, that an answer sets equal must be equal: ``6=5`` says nothing (`contradicts`).
- A number in a base (``12_{3}``) is that number only where the gold is written with the same base (`base`).

They go by words and signs, not by meaning, so "not 3, but 5" is lost as well, and a denial in German is none. They
are for marked answers, not for whole responses, in which math-verify looks for the last formula or number. Nothing
here sees more than `notation.MAX_ANSWER` characters.
"""

from __future__ import annotations

import re
from fractions import Fraction

from atrl.rewards.notation import BOLD, unmarked
from atrl.rewards.units import SCALE, split_unit

_ORDINAL = r"(?:st|nd|rd|th)\b"
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_#.,])(?<!_\{)"  # what stands behind these is of a name, as in x_1
    r"(?:(?<![\w)}\]°%])-)?(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)" + rf"(?!\d|{_ORDINAL})"
)
_PLAIN = re.compile(r"[-+]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
_BASE = re.compile(r"(?<![\w^.])\(?\d[\d,.]*\)? ?_ ?(\{[^{}]*\}|\w)")

_SIGN = re.compile(r"[-+*/^=≈≡√_]|\\[A-Za-z]|^[A-Za-z]*[)}\]]*[({]|^ ?:")
_UNIT = re.compile(r"^(?: ?\\pi)?[)}]* ?[A-Za-z]+(?=[)}]*[({]|[\s)}]*[-+*/^=≈\\])")  # or variables, as in 3xy(x+2)
_APART = r"\\(?:q?quad|lor|vee|cup)\b"
_NEXT = re.compile(r"[\s|]+(?![ghmsJLNVW]\b)(?:[A-Za-z](?:_\w+)?|[A-Z]+)\s*=")  # not a unit
_BEFORE = re.compile(r"(?:\\[A-Za-z]+ ?\S*|\S*\s*[-+*/^√=]\s*|\S+)$")
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:[A-Z]+|sqrt|sin|cos|tan|log|ln)\b)[A-Za-z]{2,}")
_EQUAL = re.compile(r"(?<![<>!:])=(?!>)|\\equiv\b|≡")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_REASON = re.compile(r",?\s(?:because|since)\b")
_CONCLUDES = re.compile(r"(?=.*\d)(?:\W*(?:so|thus|hence|therefore)\b|.*\banswer\b)", re.IGNORECASE)
_DENIAL = re.compile(
    r"n't\b|(?<!\\)\b(?:not|cannot|never|none|neither|nor|except\w*|exclud\w*|wrong|incorrect|false|impossible)\b"
    r"|\\(?:lnot|neg|nexists)\b|[不非没错]"
    r"|\bno\b(?!\.| doubt)"  # "no." is a number
    r"|\brul(?:e|es|ed|ing) (?:\S+ )?out\b|\b(?:any|all|every)\w* but\b|\bthan\b[^\w,]*\d",
    re.IGNORECASE,
)
_INEQUALITY = r"(?:<|(?<![-=])>|\\(?:le|ge|ne|lt|gt|leq|geq|neq)\b|\\not ?=|!=)=?"
_OPEN = re.compile(
    rf"{_INEQUALITY} ?-?[.\d]|\d ?{_INEQUALITY}"
    r"|\bbetween\b(?: \w+ and\b)?[^\w,]*\d"
    rf"|\d\W* {SCALE}"
    r"|\d[^\w\s]*(?: [A-Za-z]+)?,? or\b(?! so\b)|\bor(?: \\?[A-Za-z]+)?[^\w,]*\d"
    r"|或|以[上下内外]",
    re.IGNORECASE,
)
_RANGE = re.compile(r"\d[\d.,]*(?:[ckm]m|kg|[°%])?-\d[\d.,]*")
_SEVERAL = re.compile(rf"[,;&]|\\\\|\\pm\b|±|\b(?:or|and)\b|或|{_APART}|{_INEQUALITY}")

_VERB = re.compile(r"=|\b(?:is|are|was|were|has|have|gives?|makes?|equals)\b", re.IGNORECASE)
_SAYS = re.compile(r"\b(?:is|are|was|were|has|have|gives?|makes?|equals)\b:?", re.IGNORECASE)
_ABOUT = re.compile(r"\b((?:of|in|on|at|by|for|to|from|with|than|between|and)(?: +[a-z]+)?) +(?=-?\d)", re.IGNORECASE)


def conclusion(text: str) -> str:
    """The last sentence of `text`, if it gives a number as what follows or as the answer; otherwise all of it.

    One sentence goes without the reason that follows its number.
    """
    *others, last = _SENTENCE_END.split(text.strip())
    if others and not _CONCLUDES.match(last):
        return text
    claim = _REASON.split(last, maxsplit=1)[0]
    return claim if re.search(r"\d", claim) else last


def commits(answer: str, gold: str) -> bool:
    """Whether `answer` asserts one value, or as many as there may be where `gold` holds several itself.

    Numbers are of one formula where signs of mathematics join them, or brackets and commas. The same value
    said twice is one; what stands left of a formula's last equals sign is no value of its own; nor are ordinals
    and the numbers of names (``x_1``, ``∠2``) and of what a sentence is about ("the sum of 2 and 3 is 5").
    """
    if denies(answer):
        return False
    text = _plain(answer)
    if _SEVERAL.search(re.sub(r"(?<=\d)(?:,|\{,\})(?=\d{3})", "", gold)):
        return True
    formulas = _formulas(text)
    values = {_value(formula) for formula in formulas}
    ranged = any("=" not in formula and _RANGE.fullmatch(_value(formula)) for formula in formulas)
    difference = not _WORD.search(text) or re.search(r"(?<![\\A-Za-z])[A-Za-z]", gold)  # 9-4 alone, or 5-2x
    return len(values) <= 1 and not (ranged and not difference) and not _OPEN.search(text)


def denies(answer: str) -> bool:
    """Whether there is a word or sign in `answer` that denies."""
    return bool(_DENIAL.search(_plain(answer)))


def says(text: str) -> bool:
    """Whether there is a verb in `text`, which makes a sentence of it."""
    return bool(_SAYS.search(text))


def claim(sentence: str) -> str:
    """What stands behind the last verb that a number or a formula follows; all of `sentence` without one.

    So the numbers of what a sentence is about are none of its answer, and of "The area is 50π." the formula is left, of
    which math-verify's search would take a number.
    """
    text = sentence if "$" in sentence else _clean(sentence)
    said = [text[verb.end() :] for verb in _SAYS.finditer(text)]
    told = (part for part in reversed(said) if re.search(r"\d" if worded(part) else r"\w", part))
    return next(told, text)


def worded(text: str) -> bool:
    """Whether there are words or the end of a sentence in `text`, and not only formulas."""
    return bool(_WORD.search(text) or re.search(r"[.!?] ", text))


def contradicts(answer: str, gold: str) -> bool:
    """Whether a formula in `answer` sets unequal numbers of one unit, or of none, equal, unless `gold` does so too."""
    return _is_contradictory(_plain(answer)) and not _is_contradictory(_plain(gold))


def base(answer: str) -> str | None:
    r"""The subscript of the last number that has one: ``3`` of ``12_{3}``; None of ``x_{3}``, which is a name."""
    found = _BASE.findall(_plain(answer))
    return found[-1].strip("{} ") if found else None


def _plain(answer: str) -> str:
    """One line without marks of formulas, text, spacing, bold face and HTML; "=" is "equals", angle_1 is ∠1."""
    text = re.sub(r"\bis equal to\b|\bequals\b", " = ", _named(_clean(answer)))
    text = " ".join(re.sub(r"(\\[A-Za-z]+)", r"\1 ", text).split())
    return re.sub(r"(?<=[({_]) | (?=[)}])", "", re.sub(r"(?<=angle) (?=\d)", "_", text, flags=re.IGNORECASE))


def _clean(answer: str) -> str:
    answer = re.sub(r"(?<!\\)\\[,;:! ]|~", " ", re.sub(r"\{,\}|,\\!", ",", answer))
    return re.sub(rf"</?[a-z]+>|{BOLD.pattern}", " ", unmarked(answer)).replace("’", "'")


def _named(text: str) -> str:
    """`text` with a name for each number of its subject that a preposition introduces: in_2010 for "in 2010"."""
    verb = _VERB.search(text)
    if not verb or verb.group() == "=" or not re.search(r"\d", text[verb.end() :]):
        return text
    return _ABOUT.sub(r"\1_", text[: verb.start()]) + text[verb.start() :]


def _formulas(text: str) -> list[str]:
    """From what leads to the first number of each formula in `text` to its last number."""
    spans: list[tuple[int, int]] = []
    for number in _NUMBER.finditer(text):
        if spans and _joined(text, spans[-1], number.start()):
            spans[-1] = spans[-1][0], number.end()
        else:
            before = _BEFORE.search(text, spans[-1][1] if spans else 0, number.start())
            spans.append((before.start() if before else number.start(), number.end()))
    return [text[start:end] for start, end in spans]


def _joined(text: str, formula: tuple[int, int], start: int) -> bool:
    """Whether the number that starts there is of the formula before it, by what stands between them."""
    begin, end = formula
    between = text[end:start]
    if "=" in text[begin:end] and _NEXT.match(between):
        return False
    if between.strip() == ",":
        before = text[:end]
        return sum(map(before.count, "([{")) > sum(map(before.count, ")]}"))
    apart = re.search(rf"[,;]|(?<! ): |\.\s|{_APART}|{_INEQUALITY}", between) or _WORD.search(_UNIT.sub("", between))
    return not apart and bool(_SIGN.search(between))


def _value(formula: str) -> str:
    value = _bare("".join(re.split(r"=|≈|\\(?:equiv|approx)\b", formula)[-1].split()))
    return str(_number(value)) if _PLAIN.fullmatch(value) else value


def _is_contradictory(text: str) -> bool:
    measured = [split_unit(side.strip(" .")) for side in _EQUAL.split(text)]
    units = {unit for _, unit in measured} - {None}
    equal = [_EQUAL.split(formula) for formula in _formulas(text)]
    equal += [[number for number, of in measured if of == unit] for unit in units]
    return any(len({_number(side) for side in map(_bare, sides) if _PLAIN.fullmatch(side)}) > 1 for sides in equal)


def _bare(side: str) -> str:
    bare = side.strip("{} °")
    return bare[1:].removesuffix(")") if bare.startswith("(") else bare


def _number(plain: str) -> Fraction:
    return Fraction(plain.replace(",", ""))
