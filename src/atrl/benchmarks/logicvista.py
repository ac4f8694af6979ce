"""LogicVista (Xiao et al., arXiv 2407.04973): 448 questions of logic, some with several right letters.

The rule is that of `eval/extract_accuracy.py` of https://github.com/Yijia-Xiao/LogicVista: right where the sorted
lower-case letters are those of the gold. There GPT-4 extracts the letters, as a judge does here in the authors' words;
without one our rules do, and the stamp says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atrl.benchmarks.base import Benchmark, Columns, Item, Scored
from atrl.benchmarks.judge import JudgeRequest
from atrl.benchmarks.reading import announced, tail
from atrl.rewards.extract import final_answer

if TYPE_CHECKING:
    import numpy as np

    from atrl.benchmarks.figures import Figure, Units

NONE = "zzzzz"
"""What the authors' extraction calls an answer without a letter."""

_LETTER = r"\(?[A-Za-z]\)?"
_LED = re.compile(
    rf"[\s*$\"']*(?:(?:option|choice)s? )?({_LETTER}(?:\s*(?:,|&|and|or|、)\s*(?:and\s+)?{_LETTER})*|\d{{1,4}})"
    r"(?![A-Za-z0-9'])"
)
_JOINED = re.compile(r"\b(?:and|or)\b")
_CAPITALS = re.compile(r"(?<![A-Za-z'’])([A-Z])(?![A-Za-z'’])")
_FORMAT = (
    "The output should be formatted as a JSON instance that conforms to the JSON schema below.\n\n"
    'As an example, for the schema {"properties": {"foo": {"title": "Foo", "description": "a list of strings", "type": '
    '"array", "items": {"type": "string"}}}, "required": ["foo"]}\n'
    'the object {"foo": ["bar", "baz"]} is a well-formatted instance of the schema. The object {"properties": {"foo": '
    '["bar", "baz"]}} is not well-formatted.\n\nHere is the output schema:\n```\n'
    '{"properties": {"choices": {"description": "multiple choice answer of a list of letters or numbers chosen by the '
    'given text", "items": {"type": "string"}, "title": "Choices", "type": "array"}}, "required": ["choices"]}\n```'
)
"""How LangChain's `PydanticOutputParser` describes the form of the reply."""
_MARGIN, _INDENT = " " * 12, " " * 16
_REQUEST = (
    f"\n{_MARGIN}You are a information extractor that extracts multiple choice letter answer choices\n"
    f"{_INDENT}from a paragraph that contains the answer choice and sometimes and explaination of why that choice is "
    'correct to the following question: "{question}"\n\n'
    f"{_INDENT}What letter did the following answer choose? If the answer did not select a letter answer choice, first "
    "try to infer the answer based off the given choices.\n"
    f"{_INDENT}If it does not seem like the given answer corresponds to an answer choice OR if there is no selected "
    "answer, please just respond with the string ZZZZZ.\n"
    f"{_INDENT}Make sure you answer with ONLY the letters chosen.\nHere is what I need you to extract from:\n"
    'The answer is "{entry}"\n{format_instructions}\n'
    f"{_MARGIN}Helpful Answer:\n{_MARGIN}"
)
_COLUMNS: Columns = {
    "id": ["id", "index"],
    "answer": ["answer", "true answer"],
    "question": "question",
    "skill": ["skill", "reasoning skill"],
    "capability": ["broad_capability", "capability"],
    "image": ["image", "imagename"],
}


def letters(text: str) -> list[str]:
    """The sorted lower-case entries of ``B, D``, ``['b', 'd']`` or ``b``."""
    text = text.strip()
    quoted = re.findall(r"['\"]([^'\"]*)['\"]", text) if text.startswith("[") else None
    entries = text.split(",") if quoted is None else quoted
    return sorted(entry.strip().lower() for entry in entries)


def find_letters(response: str) -> str:
    """The letters that a response chooses, separated by commas; `NONE` where it chooses none.

    As the authors have it, a response that is one letter beyond E chooses none. Then in this order: the marked answer,
    what is announced, the response itself where it begins with letters, all capitals that stand alone (but for the
    words A and I).
    """
    text = tail(response)
    if _chooses_nothing(text.strip()):
        return NONE
    for start in (final_answer(text), announced(text), text):
        found = _LED.match(start.strip()) if start else None
        if found and _are_letters(found.group(1), start.strip()) and not (start is text and _is_article(found)):
            return ", ".join(_split(found.group(1)))
    alone = [letter for letter in _CAPITALS.findall(text) if letter not in "AI"]
    return ", ".join(sorted(set(alone))) if alone and len(set(alone)) <= 4 else NONE


def read_choices(reply: str) -> list[str] | None:
    """The list under ``choices`` in a judge's JSON, whatever stands around it, or the word alone that it was to say
    where nothing was chosen; None of any other reply."""
    if reply.strip().lower() == NONE:
        return [NONE]
    try:
        choices = json.loads(reply[reply.find("{") : reply.rfind("}") + 1])["choices"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return choices if isinstance(choices, list) and all(isinstance(choice, str) for choice in choices) else None


def _chooses_nothing(single: str) -> bool:
    return len(single) == 1 and single.lower() not in "abcde0123456789"


def _split(text: str) -> list[str]:
    return sorted(set(re.findall("[A-Z]|[0-9]+", _JOINED.sub(",", text).upper())))


def _are_letters(found: str, start: str) -> bool:
    """A capital is one; a small letter only where nothing follows, lest "a pattern" choose A."""
    return found == start.rstrip(".") or not any(sign.islower() for sign in _JOINED.sub("", found))


def _is_article(found: re.Match[str]) -> bool:
    """Whether a lone A or I at the start goes on as a sentence."""
    after = found.string[found.end() : found.end() + 2]
    return found.group(1) in ("A", "I") and after[:1] == " " and after[1:].isalpha()


@dataclass(frozen=True, kw_only=True)
class LogicVista(Benchmark):
    """The headline is the share that is right."""

    name = "logicvista"
    headline = "accuracy"
    empty_gold = True
    hub: str = "lscpku/LogicVista"
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))
    instruction: str = ""

    def gold(self, row: Mapping[str, Any]) -> str:
        """As the letters of an answer are recorded."""
        return ", ".join(letters(self.recorded(row["answer"])))

    def recorded(self, extraction: Any) -> str:
        """A list of letters as text."""
        if isinstance(extraction, list | tuple):
            return ", ".join(map(str, extraction))
        return str(extraction)

    def prompt(self, item: Item) -> str:
        """The data's question, which says what to choose from."""
        return "\n".join(filter(None, [str(item.get("question", "")), self.instruction]))

    def extract(self, response: str, item: Item) -> str | None:
        """Our rules in place of GPT-4."""
        return find_letters(response) if response.strip() else ""

    def judge(self, extraction: str | None, item: Item) -> Scored:
        """Right where the sorted letters are the gold's."""
        given = letters(extraction or "")
        prediction = None if given in ([], [""], [NONE]) else ", ".join(given)
        return Scored(extraction, prediction, float(given == letters(item.gold)))

    def request(self, item: Item, response: str, replies: tuple[str, ...]) -> JudgeRequest | None:
        """The authors' question, also about a single letter from A to E; asked again where the reply was not in the
        form that it names, up to five times."""
        entry = _entry(response)
        if not entry.strip() or _chooses_nothing(entry.strip()) or len(replies) == 5:
            return None
        if replies and read_choices(replies[-1]) is not None:
            return None
        text = _REQUEST.format(question=item.get("question", ""), entry=entry, format_instructions=_FORMAT)
        return JudgeRequest(text, attempt=len(replies))

    def settle(self, item: Item, response: str, replies: tuple[str, ...]) -> Scored | None:
        """The rule's verdict on the letters that were extracted; None where no reply held any."""
        if not replies:
            return self.judge(NONE if _entry(response).strip() else "", item)
        choices = read_choices(replies[-1])
        return None if choices is None else self.judge(str(choices), item)

    def figures(self, items: Sequence[Item], values: Mapping[str, np.ndarray], units: Units) -> list[Figure]:
        """Accuracy, by reasoning skill and by capability; a question may count in several."""
        figures: list[Figure] = [units.mean("accuracy", values["score"])]
        for role in ("skill", "capability"):
            for label in sorted({label for item in items for label in _labels(item, role)}):
                having = [float(label in _labels(item, role)) for item in items]
                figures.append(units.mean(f"{role}/{label}", values["score"], having))
        return figures


def _entry(response: str) -> str:
    """The authors' code leaves out what a transcript holds before the answer."""
    return response.split("ASSISTANT:")[1] if "ASSISTANT:" in response else response


def _labels(item: Item, role: str) -> list[str]:
    value = item.get(role, [])
    return letters(value) if isinstance(value, str) else [str(label) for label in value]
