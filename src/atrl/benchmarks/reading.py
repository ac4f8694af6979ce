r"""The answer in a free response, by rules: what stands in a box, what "the answer is" announces, what is bold.

These rules replace the language model that several benchmarks use to read a response. Everything is linear in the
length of the text, and only its last `SEARCHED` characters are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain
from string import ascii_uppercase

from atrl.benchmarks.numbers import NoNumber, number_in
from atrl.rewards.extract import final_answer
from atrl.rewards.notation import is_prose

SEARCHED = 20_000
"""Characters at the end of a response that are searched."""

_ANNOUNCED = re.compile(
    r"\b(?:answers?|option|choice)\b(?:\s+(?:to|for)\s+(?:the|your|this)\s+question)?\s*(?:is|are|would be|should be|:)"
    r"[\s:*$\"'“]*",
    re.IGNORECASE,
)
_CAPITAL = r"(?![AI] +(?!(?:and|as|because|but|is|or|since)\b)[a-z])([A-Z])(?![A-Za-z0-9'’])"
"""A letter by itself that isn't the word A or I: a sentence goes on after these, but for words that follow neither."""
_LETTER = re.compile(
    rf"[\s*$]*(?:(?i:option|choice)\s[\s*$]*)?(?:\(([A-Za-z])\)|{_CAPITAL}|([a-z])(?:\)|[\s.*$\"'”]*$))"
)
_AT_START = re.compile(r"[\s*$]*(?:\(([A-Za-z])\)|([A-Z])(?=[\s*$]*(?:[.:),\n]|$)))")
_IN_PARENTHESES = re.compile(r"\(([A-Z])\)")
_BARE = re.compile(rf"(?<![A-Za-z0-9'’(]){_CAPITAL}")
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_LIST = re.compile(r"\[[^\[\]\n]{1,500}\]")
_ARTICLE = re.compile(r"(?:(?:an?|the) +)?[\"'“‘(]?", re.IGNORECASE)
_TORN_BEFORE = re.compile(r"\d[.,]$|[-−/^_{\\]$|[\d)}] ?[-+*/] ?$")
_TORN_AFTER = re.compile(r"[.,]\d|[_}]|\^(?!\{? ?\\circ)| ?[-+*/] ?[\d\\(√π]|[√π]| ?\\(?:frac|sqrt|pi|times|cdot)")
"""What makes a number a part of a larger one, or of a formula."""


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
    """The option letter that `text` begins with: "(B) 57", "B. 57", "**B**", "option B"; None without one.

    A small letter counts in parentheses, or where nothing follows it: "a circle" chooses nothing, nor does "A circle".
    """
    found = _LETTER.match(text.strip())
    letter = (found[1] or found[2] or found[3]).upper() if found else None
    return letter if letter is not None and letter in letters else None


def find_letter(response: str, count: int) -> str | None:
    """The letter of the chosen one of `count` options; None where none can be told.

    In this order: the marked answer (a box, an ``<answer>``), what is announced, the response itself where it begins
    with a letter, the last bold text that does, the last letter in parentheses, the only capital that stands alone.
    """
    letters = ascii_uppercase[:count]
    return _stated(response, lambda said: letter_of(_plain(said), letters), letters) or _loose(response, letters)


def find_choice(response: str, choices: Sequence[str]) -> str:
    """The chosen option's letter in parentheses, or its text; the response where neither can be found.

    Of what is marked, announced or bold, in this order, the first that is or names an option, by its letter or by its
    text. Letters anywhere else count only where there is none, and after them the option that is named last.
    """
    letters = ascii_uppercase[: len(choices)]
    stated = _stated(response, lambda said: _said_choice(said, letters, choices), letters)
    found = stated or _loose(response, letters)
    if found in choices:
        return found
    return f"({found})" if found else named_choice(tail(response), choices) or response


def _stated(response: str, read: Callable[[str], str | None], letters: str) -> str | None:
    """What `read` finds in the marked answer, what is announced, or bold text; the letter that `response` begins with
    goes before bold text."""
    text = tail(response)
    for said in (final_answer(text), announced(text)):
        if said is not None and (found := read(said)):
            return found
    if (start := _AT_START.match(response)) and (letter := (start[1] or start[2]).upper()) in letters:
        return letter
    return next(filter(None, map(read, reversed(_BOLD.findall(text)))), None)


def _loose(response: str, letters: str) -> str | None:
    """The last letter in parentheses, else the only capital that stands alone."""
    text = tail(response)
    for pattern in (_IN_PARENTHESES, _BARE):
        named = [letter for letter in pattern.findall(text) if letter in letters]
        if named and (pattern is _IN_PARENTHESES or len(set(named)) == 1):
            return named[-1]
    return None


def _said_choice(said: str, letters: str, choices: Sequence[str]) -> str | None:
    """The letter that `said` begins with, or the option that it is, that it begins with, or that it names last."""
    said = _plain(said)
    if letter := letter_of(said, letters):
        return letter
    if same := [choice for choice in choices if choice.strip() and _folded(choice) == _folded(said)]:
        return same[0]
    start = _ARTICLE.match(said)
    begun = [
        choice
        for choice in choices
        if choice.strip() and start and _is_whole(said.lower(), start.end(), choice.lower())
    ]
    return max(begun, key=len) if begun else named_choice(said, choices)


def named_choice(text: str, choices: Sequence[str]) -> str | None:
    """The option whose text stands last in `text`, of several that end there the longest; None without one."""
    lowered = text.lower()
    found = [(_end_of(lowered, choice.lower()), len(choice), choice) for choice in choices if choice.strip()]
    end, _, choice = max(found, default=(0, 0, ""), key=lambda entry: entry[:2])
    return choice if end > 0 else None


def _end_of(text: str, part: str) -> int:
    """Where the last occurrence of `part` as a word or number of its own ends; 0 without one."""
    start = text.rfind(part)
    while start >= 0:
        end = start + len(part)
        if _is_whole(text, start, part):
            return end
        start = text.rfind(part, 0, end - 1)
    return 0


def _is_whole(text: str, start: int, part: str) -> bool:
    """Whether `part` stands at `start` as a word or number of its own."""
    end = start + len(part)
    before, after = text[max(0, start - 4) : start], text[end : end + 8]
    if not text.startswith(part, start):
        return False
    if (part[0].isalnum() and before[-1:].isalnum()) or (part[-1].isalnum() and after[:1].isalnum()):
        return False
    if part[0].isdigit() and _TORN_BEFORE.search(before):
        return False
    return not (part[-1].isdigit() and _TORN_AFTER.match(after))


def find_number(response: str) -> str:
    """The number that a response gives as its answer (`numbers.number_in`).

    In this order: in the marked answer, in what is announced, in the last bold text with a number, in the last
    sentence with one. Of an equation the right side counts, of a sentence the first number of what is announced and
    else the last one. Empty where the answer is mathematics without a value; the response itself where it holds no
    digit.
    """
    text = tail(response)
    marked = final_answer(text)
    try:
        if marked is not None and (number := number_in(marked, last=True, marked=not is_prose(marked))) is not None:
            return number
        said = announced(text)
        if said is not None and (number := number_in(said, announced=True)) is not None:
            return number
    except NoNumber:
        return ""
    in_bold = (number_in(bold) for bold in reversed(_BOLD.findall(text)[-60:]))
    in_sentences = (number_in(sentence, last=True) for sentence in reversed(_SENTENCE.split(text)[-60:]))
    found = next((number for number in chain(in_bold, in_sentences) if number is not None), None)
    return found or ("" if re.search("[0-9]", text) else response)


def find_list(response: str) -> str:
    """The last list in square brackets; the response itself where there is none."""
    lists = _LIST.findall(tail(response))
    return lists[-1] if lists else response


def _plain(text: str) -> str:
    r"""`text` without LaTeX's marks of text: ``\text{B}`` is ``B``."""
    return re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text).strip("$ *")


def _folded(text: str) -> str:
    """`text` without spaces, a final full stop and what doesn't tell options apart."""
    text = re.sub(r"\\[dtc]frac", r"\\frac", text.lower()).replace("√", r"\sqrt").replace("π", r"\pi")
    return re.sub(r"\\[,;:! ]|\s|\$", "", text).rstrip(".")
