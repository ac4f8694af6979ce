"""A small reward for writing the answer where it can be found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atrl.rewards.base import RewardPart, Verdict
from atrl.rewards.extract import boxed_spans

if TYPE_CHECKING:
    from atrl.types import Problem

_CLOSERS = ("$$", "$", r"\]", r"\)", "")
_ENDINGS = {"."} | {ending for mark in _CLOSERS for ending in (mark, mark + ".", "." + mark)}


class BoxedFormat(RewardPart):
    r"""1 where the response ends with its only ``\boxed{...}``, balanced and not empty, else 0.

    After the box only whitespace, one period and what closes the formula (``$``, ``$$``, ``\]``, ``\)``) may
    stand. A second ``\boxed``, even a broken one, costs the reward, so boxing several guesses doesn't pay.

    Args:
        weight: factor of this part in the reward.
    """

    name = "format"

    def __init__(self, *, weight: float = 0.1) -> None:
        super().__init__(weight=weight)

    def score(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict a text; the problems play no role."""
        return [Verdict(float(_ends_boxed(text))) for text in texts]


def _ends_boxed(text: str) -> bool:
    spans = boxed_spans(text)
    if len(spans) != 1 or text.count("\\boxed") != 1:
        return False
    start, end = spans[0]
    after = "".join(text[end + 1 :].split())
    return bool(text[start:end].strip()) and after in _ENDINGS
