"""What generators of problems have in common: the shares of the splits, and problems made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from atrl.data.base import Split
from atrl.types import Problem

SHARES: dict[Split, tuple[float, float]] = {"train": (0.0, 0.7), "selection": (0.7, 0.8), "test": (0.8, 1.0)}
"""Which part of all that can be drawn belongs to a split, from and to."""


class GeneratedProblems(Sequence[Problem]):
    """The problems "split-0", "split-1", …, each made when it is asked for: thousands of pictures need no memory.

    Args:
        make: id → problem, the same each time.
        split: of these.
        size: how many there are.

    Raises:
        ValueError: if there are none.
    """

    def __init__(self, make: Callable[[str], Problem], split: Split, size: int) -> None:
        if size < 1:
            raise ValueError(f"data.{split}_size is {size}, which leaves no problem: set it to 1 or more")
        self._make, self._split, self._size = make, split, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        if not -self._size <= index < self._size:
            raise IndexError(index)
        return self._make(f"{self._split}-{index % self._size}")


def examples(problems: Sequence[Problem]) -> Sequence[Problem]:
    """All of a list; of problems that are made when they are asked for the first, which stands for all of its kind."""
    return problems if isinstance(problems, list) else problems[:1]
