"""MMMU-Pro (Yue et al., arXiv 2409.02813): MMMU with ten options, or with the question itself in the picture.

The rule is that of `mmmu-pro/evaluate.py` of https://github.com/MMMU-Benchmark/MMMU, but for its random guess where
it finds no choice: that stays wrong here, and is counted as ``unguessed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from atrl.benchmarks.base import Columns, Item
from atrl.benchmarks.mmmu import _MARKS, MMMU, options_of

_COLUMNS: Columns = {
    "id": "id",
    "answer": "answer",
    "question": "question",
    "options": "options",
    "image": "image",
    **{f"image_{number}": f"image_{number}" for number in range(1, 8)},
}


def parse_choice(response: str, options: Mapping[str, str]) -> str | None:
    """The letter that a response chooses, or None where the authors would guess.

    The only letter after the last ``Answer:``, else ``(A)``, ``A `` (whatever stands before it) or ``A.`` anywhere,
    else, in a response of more than five words, an option's text. Of several the one that comes last; but those
    found as ``A `` or ``A.`` are placed by `` A `` with spaces at both sides, as the authors do, and the first wins
    where none of them stands so.
    """
    _, found, after = response.rpartition("Answer:")
    if found:
        named = [letter for letter in options if letter in after.strip()]
        if len(named) == 1:
            return named[0]
    for mark in _MARKS:
        response = response.strip(mark)
    padded = f" {response} "
    for pattern, placed in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        candidates = [letter for letter in options if pattern.format(letter) in padded]
        if candidates:
            return max(candidates, key=lambda letter: padded.rfind(placed.format(letter)))
    if len(padded.split()) <= 5:
        return None
    lowered = padded.lower()
    named = [letter for letter, text in options.items() if text.lower() in lowered]
    return max(named, key=lambda letter: lowered.rfind(options[letter].lower()), default=None)


@dataclass(frozen=True, kw_only=True)
class MMMUPro(MMMU):
    """1,730 questions in each of the hub's configurations; the authors' overall score is the mean of ``standard (10
    options)`` and ``vision``, each evaluated by itself."""

    name = "mmmu_pro"
    image_roles = ("image", *(f"image_{number}" for number in range(1, 8)))
    hub: str = "MMMU/MMMU_Pro"
    config: str | list[str] | None = "standard (10 options)"
    split: str | list[str] = "test"
    columns: Columns = field(default_factory=lambda: dict(_COLUMNS))
    vision_instruction: str = (
        "Answer with the option letter from the given choices directly. The last line of your response should be of "
        "the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of options."
    )
    instruction: str = "Answer with the option letter from the given choices directly."

    def prompt(self, item: Item) -> str:
        """Question and options as text, or only the instruction where the picture holds them."""
        if item.get("question") is None:
            return self.vision_instruction
        options = "".join(f"{letter}. {text}\n" for letter, text in options_of(item).items())
        return f"{item.get('question')}\n{options}\n{self.instruction}"

    def extract(self, response: str, item: Item) -> str | None:
        """The letter."""
        return parse_choice(response, options_of(item))
