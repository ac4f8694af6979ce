"""Where a step's time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = ("rollout", "reward", "score", "credit", "update", "sync", "evaluate")


class PhaseTimer:
    """Seconds per named phase: since the last `lap`, and in all."""

    def __init__(self) -> None:
        self.total: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._lap: dict[str, float] = defaultdict(float)
        self._open: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time inside the block to phase `name`; on CUDA the device is waited for at both ends.

        The time of a phase inside another is the inner one's alone.
        """
        assert name in self.total, f"unknown phase {name!r}, expected one of {PHASES}"
        _wait_for_device()  # for what was launched before: it is not this phase's
        start = time.perf_counter()
        self._open.append(name)
        try:
            yield
            _wait_for_device()
        finally:
            self._open.pop()
            seconds = time.perf_counter() - start
            self._add(name, seconds)
            if self._open:
                self._add(self._open[-1], -seconds)

    def recount(self, seconds: float, *, to: str) -> None:
        """Count `seconds` of the phase that is open now as phase `to`'s instead."""
        if self._open:
            self._add(self._open[-1], -seconds)
            self._add(to, seconds)

    def _add(self, name: str, seconds: float) -> None:
        self.total[name] += seconds
        self._lap[name] += seconds

    def lap(self) -> dict[str, float]:
        """Seconds per phase since the last call."""
        lap, self._lap = dict(self._lap), defaultdict(float)
        return lap


def _wait_for_device() -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
