"""A reward for coming to the point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atrl.rewards.base import RewardPart, Verdict

if TYPE_CHECKING:
    from atrl.types import Problem


class Brevity(RewardPart):
    """1 up to so many words, then falling linearly to 0 at twice as many.

    Args:
        words: how many are brief.
        weight: factor of this part in the reward.
    """

    name = "brevity"

    def __init__(self, *, words: int = 30, weight: float = 0.1) -> None:
        super().__init__(weight=weight)
        if words < 1:
            raise ValueError(f"reward.parts.brevity.words must be at least 1, got {words}: 30 is a short answer")
        self.words = words

    def score(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict a text, whatever the problem."""
        return [Verdict(min(1.0, max(0.0, 2 - len(text.split()) / self.words))) for text in texts]
