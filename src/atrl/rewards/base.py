"""What every reward part has in common."""

from __future__ import annotations

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from atrl.types import Problem

_NO_RULE = ("weight", "workers")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one reward part says about one response."""

    value: float
    """Between 0 and 1."""
    parsed: bool = True
    """Whether an answer could be read from the response; always true of parts that read none."""


class RewardPart(ABC):
    """One addend of the reward. The part that `is_answer` also decides whether a response is right."""

    name: ClassVar[str]
    is_answer: ClassVar[bool] = False
    edition: ClassVar[int] = 1
    """Of the rule: one more wherever a text may be judged otherwise than before, so that results can be told apart."""

    def __init__(self, *, weight: float) -> None:
        if not math.isfinite(weight):
            raise ValueError(f"reward.parts.{self.name}.weight must be finite, got {weight}: use 1.0, say")
        if self.is_answer and weight <= 0:
            raise ValueError(f"reward.parts.{self.name}.weight must be > 0, got {weight}: use 1.0, say")
        self.weight = weight

    @abstractmethod
    def score(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict a text, the response to the problem at the same place; never raises on a text."""

    def gold_faults(self, problems: Sequence[Problem]) -> list[str | None]:
        """What is wrong with each problem's gold answer, remedy included, or None where it can be scored."""
        return [None] * len(problems)

    def check_gold(self, problem: Problem) -> None:
        """Raise ValueError, with the problem's id, its answer and the remedy, if the gold can't be parsed."""
        if fault := self.gold_faults([problem])[0]:
            raise ValueError(describe_fault(problem, fault))

    def rule(self) -> dict[str, Any]:
        """What its verdicts depend on, for an evaluation's stamp: its class, its edition, the constructor's arguments.

        Those that it keeps under their names, or these with a "_" in front; not `weight` and `workers`, which change no
        verdict. A part whose verdicts depend on more says so in its own `rule`. What JSON can't hold is its `repr`.
        """
        kept = vars(self)
        names = [name for name in inspect.signature(type(self)).parameters if name not in _NO_RULE]
        arguments = {name: kept[key] for name in names for key in (name, f"_{name}") if key in kept}
        rule = {"class": f"{type(self).__module__}.{type(self).__qualname__}", **arguments}
        if self.edition > 1:  # or the stamps of before, which name none, would be of another rule
            rule["edition"] = self.edition
        return json.loads(json.dumps(rule, default=repr))

    def close(self) -> None:  # noqa: B027  most parts hold nothing
        """Give back what the part holds (worker processes, say)."""


def describe_fault(problem: Problem, fault: str) -> str:
    """One line that names the problem, its gold answer and the remedy."""
    return f"problem {problem.id!r}: the gold answer {problem.answer[:80]!r} {fault}"
