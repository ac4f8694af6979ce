r"""The answer in a free response, by rules: what stands in a box, what "the answer is" announces, what is bold.

These rules replace the language model that several benchmarks use to read a response. Everything is linear in the
length of the text, and only its last `SEARCHED` characters are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from atrl.rewards.extract import final_answer

SEARCHED = 20_000
"""Characters at the end of a response that are searched."""

_ANNOUNCED = re.compile(
    r"\b(?:answers?|option|choice)\b(?:\s+(?:to|for)\s+(?:the|your|this)\s+question)?\s*(?:is|are|would be|should be|:)"
    r"[\s:*$\"'“]*",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"[\s*$]*(?:option\s+|choice\s+)?[\s*$]*(?:\(([A-Za-z])\)|([A-Z])(?![A-Za-z0-9'’]))", re.IGNORECASE
)
_AT_START = re.compile(r"[\s*$]*(?:\(([A-Za-z])\)|([A-Z])(?=[\s*$]*(?:[.:),\n]|$)))")
_IN_PARENTHESES = re.compile(r"\(([A-Z])\)")
_BARE = re.compile(r"(?<![A-Za-z0-9'’(])([A-Z])(?![A-Za-z0-9'’])")
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_NUMBER = re.compile(r"(?<![A-Za-z0-9_.])[-−]?\$?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)?(?:\.\d+)?(?:[eE][+-]?\d{1,3})?")
_LIST = re.compile(r"\[[^\[\]\n]{1,500}\]")
_COUNTED = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_WORDS = {word: number for number, word in enumerate(_COUNTED)}
_NUMBER_WORD = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)


def tail(text: str) -> str:
    """The end of `text` that is searched."""
    return text[-SEARCHED:]


def announced(text: str) -> str | None:
    """What follows the last "the answer is" (or option, or choice), to the end of its sentence; None without one."""
    text = tail(text)
    ends = [found.end() for found in _ANNOUNCED.finditer(text)]
    if not ends:
        return None
    rest = _SENTENCE.split(text[ends[-1] : ends[-1] + 300].lstrip(), maxsplit=1)[0]
    return rest.strip().strip("*").rstrip(".").strip() or None


def letter_of(text: str, letters: str = ascii_uppercase) -> str | None:
    """The option letter that `text` begins with: "(B) 57", "B. 57", "**B**", "option B"; None without one."""
    found = _LETTER.match(text.strip())
    letter = (found.group(1) or found.group(2)).upper() if found else None
    if letter is None or letter not in letters:
        return None
    return letter


def find_letter(response: str, count: int) -> str | None:
    """The letter of the chosen one of `count` options; None where none can be told.

    In this order: the marked answer (a box, an ``<answer>``), what is announced, the response itself where it begins
    with a letter, the last bold text that does, the last letter in parentheses, the only capital that stands alone.
    """
    letters = ascii_uppercase[:count]
    text = tail(response)
    marked = final_answer(text)
    for start in (marked, announced(text)):
        if start is not None and (letter := letter_of(_plain(start), letters)):
            return letter
    if (found := _AT_START.match(response)) and (letter := (found[1] or found[2]).upper()) in letters:
        return letter
    for bold in reversed(_BOLD.findall(text)):
        if letter := letter_of(bold, letters):
            return letter
    for pattern in (_IN_PARENTHESES, _BARE):
        named = [letter for letter in pattern.findall(text) if letter in letters]
        if named and (pattern is _IN_PARENTHESES or len(set(named)) == 1):
            return named[-1]
    return None


def find_choice(response: str, choices: Sequence[str]) -> str:
    """The chosen option's letter in parentheses, or its text; the response where neither can be found."""
    if letter := find_letter(response, len(choices)):
        return f"({letter})"
    text = tail(response)
    for said in (final_answer(text), announced(text), *reversed(_BOLD.findall(text))):
        if said is not None and (choice := named_choice(said, choices)):
            return choice
    return named_choice(text, choices) or response


def named_choice(text: str, choices: Sequence[str]) -> str | None:
    """The option whose text stands last in `text`, of several that end there the longest; None without one."""
    lowered = text.lower()
    found = [(_end_of(lowered, choice.lower()), len(choice), choice) for choice in choices if choice.strip()]
    end, _, choice = max(found, default=(0, 0, ""), key=lambda entry: entry[:2])
    return choice if end > 0 else None


def _end_of(text: str, part: str) -> int:
    """Where the last occurrence of `part` as a word of its own ends; 0 without one."""
    start = text.rfind(part)
    while start >= 0:
        end = start + len(part)
        before, after = text[start - 1 : start], text[end : end + 1]
        if not (part[0].isalnum() and before.isalnum()) and not (part[-1].isalnum() and after.isalnum()):
            return end
        start = text.rfind(part, 0, end - 1)
    return 0


def find_number(response: str, *, whole: bool) -> str:
    """The number that a response gives as its answer; the response itself where it holds none.

    In this order: in the marked answer, in what is announced, in the last bold text with a number, in the last
    sentence with one. Of an equation the right side counts, of a sentence the first number of what is announced and
    else the last one.
    """
    text = tail(response)
    marked = final_answer(text)
    for said, last in (
        (marked, True),
        (announced(text), False),
        *((bold, False) for bold in reversed(_BOLD.findall(text))),
        *((sentence, True) for sentence in reversed(_SENTENCE.split(text)[-60:])),
    ):
        if said is not None and (number := number_in(said, last=last, whole=whole)) is not None:
            return number
    return response


def number_in(text: str, *, last: bool = False, whole: bool = False) -> str | None:
    """The first number of `text` (or its last), written so that ``float`` reads it; None without one.

    Of an equation it is a number of its right side. Thousands separators and a dollar sign go; "three" is 3.
    """
    text = text.rpartition("=")[2] if "=" in text else text
    numbers = [found.group() for found in _NUMBER.finditer(text) if any(sign.isdigit() for sign in found.group())]
    if not numbers:
        words = _NUMBER_WORD.findall(text)
        return str(_WORDS[words[-1 if last else 0].lower()]) if words else None
    return numbers[-1 if last else 0].replace(",", "").replace("$", "").replace("−", "-")


def find_list(response: str) -> str:
    """The last list in square brackets; the response itself where there is none."""
    lists = _LIST.findall(tail(response))
    return lists[-1] if lists else response


def _plain(text: str) -> str:
    r"""`text` without LaTeX's marks of text: ``\text{B}`` is ``B``."""
    return re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text).strip("$ *")
