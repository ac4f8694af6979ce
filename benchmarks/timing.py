"""Times of kinds of work that take turns, so that none has the better state of the machine; for scripts here."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Kind = TypeVar("Kind", bound=Hashable)


def best_seconds(work: Mapping[Kind, Callable[[], object]], repeats: int) -> dict[Kind, float]:
    """The shortest of `repeats` calls of each, after one that does not count."""
    seconds = dict.fromkeys(work, float("inf"))
    for repeat in range(repeats + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds
