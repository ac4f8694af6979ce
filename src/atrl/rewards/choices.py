r"""Which multiple-choice letter an answer names.

It is the one that an answer starts with, or that follows "the answer is" in a sentence. What denies ("(B) is wrong",
"not B") or names several ("B or C", "(B) (C)") names none.
"""

from __future__ import annotations

import re

from atrl.rewards.claims import denies
from atrl.rewards.notation import LETTER, as_text

_IS = r"(?:is|was|would be|must be)"
_LEADS = re.compile(
    rf"^(?:(?:so|thus|hence|therefore|the|my|final|correct|right|best|option|choice|answer|{_IS}"
    r"|i (?:choose|chose|select|pick))\b ?[:,]? ?)+",
    re.IGNORECASE,
)
_NAMES = re.compile(
    rf"\b(?i:answer\b ?{_IS}?|(?:option|choice) {_IS}|is (?=option|choice)) ?:? ?(?i:(?:option|choice)\b ?)?"
    r"(?=[(\[]? ?([A-J])\b)"
)
_LED = re.compile(
    r"(?:\( ?(?P<enclosed>[A-J]) ?\)|\[ ?(?P<squared>[A-J]) ?\]|(?P<marked>[A-J]) ?[.:)])(?=[\s,]|$)"
    r"|(?P<listed>[A-J])(?:,| -)(?= )"
    r"|(?P<said>[A-J])(?= is (?:the )?(?:correct|right|best|answer)\b|,? (?:because|since|as)\b)"
)
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")
_OPEN = re.compile(r"\b(?:either|if|unless|whether|could|might|may)\b", re.IGNORECASE)
_OTHERS = (
    re.compile(r"(?<![\w)])[(\[] ?([A-J]) ?[)\]]"),
    re.compile(r"\b(?i:or|is|be|not|answer|option|choice)\b:? [(\[]?([A-J])\b(?![\w'(])"),
    re.compile(r"^\W*(?i:not|no|wrong|incorrect|false)\b.*\b([A-J])$"),
    re.compile(r"[\d,;)] ([A-J]) ?[.:)]"),
    re.compile(r"^\W*(?:(?i:or|and|nor)\b\W*)?([A-J])(?: ?[.:)]|$)"),
)
_LISTED = re.compile(r"^\W*(?:(?i:or|and|nor)\b\W*)?[A-J]\b")
_SPOKEN_OF = re.compile(r"^,? ?(?:is|was|can|could|would|might|may|must|isn|wasn|couldn|wouldn)\b")


def choice_letter(answer: str) -> str | None:
    r"""The letter of ``B``, ``(B)``, ``b``, ``B. 12 cm``, ``\text{B}``, "So the answer is (B)."; None without one."""
    text = re.sub(r"\\[,;: ]|~", " ", as_text(answer))
    said = _LEADS.sub("", text)
    if alone := LETTER.fullmatch(said.upper()):
        return alone.group(1)
    if _LED.match(said):
        return _led(said)
    *_, named = [None, *_NAMES.finditer(text)]
    if not named:
        return None
    head = _SENTENCE_END.split(text[: named.start()])[-1]
    if denies(head) or _OPEN.search(head) or _others(head):
        return None
    said = text[named.end() :]
    alone = LETTER.fullmatch(said)
    return alone.group(1) if alone else _led(said)


def _led(text: str) -> str | None:
    """The letter that `text` starts with and that stands for itself, if the rest names no other."""
    led = _LED.match(text)
    if not led:
        return None
    letter, rest = next(filter(None, led.groups())), text[led.end() :].strip()
    apart = led["listed"] and _LISTED.match(rest)
    denied = (led["enclosed"] or led["squared"] or led["said"]) and _SPOKEN_OF.match(rest) and denies(rest)
    others = _others(_SENTENCE_END.split(rest)[0]) | {name.group(1) for name in _NAMES.finditer(rest)}
    return None if apart or denied or others - {letter} else letter


def _others(text: str) -> set[str]:
    """Letters that `text` names as choices."""
    return {letter for pattern in _OTHERS for letter in pattern.findall(text)}
