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

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time inside the block to phase `name`; on CUDA the device is waited for first."""
        assert name in self.total, f"unknown phase {name!r}, expected one of {PHASES}"
        start = time.perf_counter()
        try:
            yield
            _wait_for_device()
        finally:
            seconds = time.perf_counter() - start
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
