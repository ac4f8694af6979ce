"""Mathematical equality as published reward functions have it: math-verify searches the whole response, and the gold.

Looser than `math_answer.py`, and wrong at times: it takes any number within a formula that it can't read. It is here
to reproduce results that were reported with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atrl.rewards import math_worker
from atrl.rewards.base import Verdict
from atrl.rewards.bounded import BoundedPart

if TYPE_CHECKING:
    from atrl.types import Problem

_SEARCHED = 20_000  # characters at the end of a response


class MathVerifyAnswer(BoundedPart):
    """1 where ``verify(parse(response), parse(gold))`` of https://github.com/huggingface/Math-Verify says so, else 0.

    The order is that of R1-V's reward (https://github.com/Deep-Agent/R1-V), whose response takes the gold's place. A
    response that breaks a limit counts as unparseable. Arguments: see `BoundedPart`.
    """

    name = "math_verify"
    is_answer = True

    def gold_faults(self, problems: Sequence[Problem]) -> list[str | None]:
        """A gold answer must not be empty; whatever else it is, this rule takes it as it is."""
        fault = "is empty: give the problem an answer or leave it out"
        return [None if problem.answer.strip() else fault for problem in problems]

    def score(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict a text; unparsed where math-verify finds nothing in it, or it broke a limit."""
        calls = [(text[-_SEARCHED:], problem.answer) for text, problem in zip(texts, problems, strict=True)]
        found = self._workers.run(math_worker.judge_whole, calls)
        return [
            Verdict(float(right), parsed=readable) for readable, right in (pair or (False, False) for pair in found)
        ]
