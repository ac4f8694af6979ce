"""What every source of problems has in common: the protocol, and splits that depend on ids and a seed alone.

Nothing here looks at the order of the problems, at the number of processes or at a global random state, so a
problem belongs to the same split on every machine, and adding problems moves none of the old ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, Protocol, TypedDict, runtime_checkable

from atrl.types import Problem

Split = Literal["train", "selection", "test"]


class Baseline(TypedDict):
    """An accuracy that takes no picture to reach, to be printed beside a model's."""

    description: str
    accuracy: float
    """Fraction of `problems` that are right, 0 … 1."""
    problems: int
    """How many problems of the test split it was computed on."""


@runtime_checkable
class ProblemSource(Protocol):
    """Where problems come from; one file and one YAML of the group `data` each."""

    @property
    def name(self) -> str:
        """What reports call the source."""

    def load(self, split: Split) -> Sequence[Problem]:
        """The problems of `split`, never none.

        `selection` is for choosing checkpoints and shares nothing with the other two; `test` is for the
        figures that are reported.

        Raises:
            ValueError: in one line that names the thing, its value and the remedy, if the data is missing or
                broken, or leaves the split empty.
        """

    def baseline(self) -> Baseline | None:
        """A blind baseline on the test split, or None where there is none."""


def uniform_hash(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on `key` and `seed` alone; over many keys it is uniform.

    The first 53 bits, all that a float holds, of SHA-256 over ``seed/key``.
    """
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def assign_split(key: str, *, seed: int, selection_fraction: float, test_fraction: float) -> Split:
    """The split that `key` (an id, or whatever must stay together, such as a picture's) belongs to.

    Each key is drawn by itself, so the splits have the asked sizes on average and not exactly. Which keys are
    test keys does not depend on `selection_fraction`.
    """
    draw = uniform_hash(f"split/{key}", seed)
    if draw < test_fraction:
        return "test"
    return "selection" if draw < test_fraction + selection_fraction else "train"


def seeded_subset(problems: Sequence[Problem], limit: int | None, *, seed: int) -> list[Problem]:
    """At most `limit` of `problems`, in their old order; a smaller limit gives a subset of a larger one's."""
    if limit is None or limit >= len(problems):
        return list(problems)
    ranked = sorted(range(len(problems)), key=lambda index: uniform_hash(f"limit/{problems[index].id}", seed))
    return [problems[index] for index in sorted(ranked[:limit])]


def check_fraction(key: str, value: float) -> None:
    """Raises ValueError unless `value` is a number in [0, 1]; `key` is the configuration key."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{key} must be a number in [0, 1], got {value!r}: it is a share of the problems")


def check_limit(key: str, value: int | None) -> None:
    """Raises ValueError unless `value` is None or a positive integer; `key` is the configuration key."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{key} must be 1 or more, or null for all problems, got {value!r}")
