"""Mathematical equality as published reward functions have it: math-verify searches the whole response, and the gold.

Looser than `math_answer.py`, and wrong at times: it takes any number within a formula that it can't read. It is here
to reproduce results that were reported with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atrl.rewards import math_worker
from atrl.rewards.base import RewardPart, Verdict
from atrl.rewards.workers import KillableWorkers

if TYPE_CHECKING:
    from atrl.types import Problem

_SEARCHED = 20_000  # characters at the end of a response


class MathVerifyAnswer(RewardPart):
    """1 where ``verify(parse(response), parse(gold))`` of https://github.com/huggingface/Math-Verify says so, else 0.

    The order is that of R1-V's reward (https://github.com/Deep-Agent/R1-V), whose response takes the gold's place. A
    response that breaks a limit counts as unparseable.

    Args:
        weight: factor of this part in the reward.
        cpu_seconds: processor time for one response.
        memory_gib: what a worker may take for it, in GiB above its size at the start.
        workers: how many processes.
    """

    name = "math_verify"
    is_answer = True

    def __init__(
        self, *, weight: float = 1.0, cpu_seconds: float = 2.0, memory_gib: float = 1.0, workers: int = 2
    ) -> None:
        super().__init__(weight=weight)
        for key, value in {"cpu_seconds": cpu_seconds, "memory_gib": memory_gib, "workers": workers}.items():
            if not value > 0:
                raise ValueError(f"reward.parts.math_verify.{key} must be > 0, got {value}: leave it at its default")
        self._workers = KillableWorkers(
            workers=workers,
            cpu_seconds=cpu_seconds,
            memory_bytes=int(memory_gib * 2**30),
            prepare=math_worker.prepare,
        )

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

    def close(self) -> None:
        """Stop the worker processes; the next call starts new ones."""
        self._workers.close()
