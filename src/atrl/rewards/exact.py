"""The answer, letter by letter: for closed vocabularies and plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atrl.rewards.base import RewardPart, Verdict
from atrl.rewards.extract import final_answer, last_line

if TYPE_CHECKING:
    from atrl.types import Problem


def normalise(answer: str) -> str:
    """The form in which two answers are compared.

    In this order: whitespace runs become one space and the ends are stripped; a final period goes, then
    ``$...$`` or ``$$...$$`` around the whole, then a period that ended the inside; spaces inside parentheses
    and around commas go; case is folded. So ``$( 2, 3 )$.`` is ``(2,3)``, and ``Yes.`` is ``yes``.
    """
    text = _without_period(" ".join(answer.split()))
    for mark in ("$$", "$"):
        if len(text) >= 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            text = _without_period(text[len(mark) : len(text) - len(mark)].strip())
            break
    for spaced, tight in (("( ", "("), (" )", ")"), (" ,", ","), (", ", ",")):
        text = text.replace(spaced, tight)
    return text.casefold()


def _without_period(text: str) -> str:
    return text.removesuffix(".").rstrip()


class ExactAnswer(RewardPart):
    """1 where the extracted answer equals the gold after `normalise`, else 0.

    Args:
        weight: factor of this part in the reward.
        require_boxed: read only a boxed (or ``<answer>``) answer. False: a response without one is read by
            its last line, for very short answers.
    """

    name = "exact"
    is_answer = True

    def __init__(self, *, weight: float = 1.0, require_boxed: bool = True) -> None:
        super().__init__(weight=weight)
        self.require_boxed = require_boxed

    def gold_faults(self, problems: Sequence[Problem]) -> list[str | None]:
        """A gold answer is faulty only where nothing is left of it after `normalise`."""
        fault = "is empty: give the problem an answer or leave it out"
        return [None if normalise(problem.answer) else fault for problem in problems]

    def score(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict a text; unparsed where no answer was marked or it is empty."""
        return [self._verdict(text, problem.answer) for text, problem in zip(texts, problems, strict=True)]

    def _verdict(self, text: str, gold: str) -> Verdict:
        answer = final_answer(text)
        if answer is None and not self.require_boxed:
            answer = last_line(text)
        answer = normalise(answer or "")
        return Verdict(float(answer == normalise(gold)), parsed=True) if answer else Verdict(0.0, parsed=False)
