"""Where a step's time and memory go."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

PHASES = ("rollout", "reward", "score", "credit", "update", "sync", "evaluate")


class WorkClock:
    """Adds up the seconds of work on a device; on a GPU, which does it later, they are known once it is done."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Add what is done, or launched, inside the block."""
        if device.type != "cuda":
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
            return
        import torch

        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._events.append((begin, end))

    @property
    def seconds(self) -> float:
        """So far; a GPU is waited for."""
        if self._events:
            self._events[-1][1].synchronize()
        return self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000


class PhaseTimer:
    """Seconds and memory per named phase: since the last `lap`, and seconds in all."""

    def __init__(self) -> None:
        self.total: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._lap: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._memory: dict[str, int] = {}
        self._process = psutil.Process()
        self.device_peak = 0
        """The most that torch ever held on the GPU, in bytes; 0 without one."""

    @property
    def open_phase(self) -> str | None:
        """The innermost phase that is open."""
        return self._open[-1] if self._open else None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time inside the block to phase `name`; on CUDA the device is waited for at both ends.

        The time and memory of a phase inside another are the inner one's alone.
        """
        assert name in self.total, f"unknown phase {name!r}, expected one of {PHASES}"
        _wait_for_device()  # for what was launched before: it is not this phase's
        self._note_memory()
        start = time.perf_counter()
        self._open.append(name)
        try:
            yield
            _wait_for_device()
        finally:
            self._note_memory()
            self._open.pop()
            seconds = time.perf_counter() - start
            self._add(name, seconds)
            if self.open_phase is not None:
                self._add(self.open_phase, -seconds)

    def recount(self, seconds: float, *, to: str) -> None:
        """Count `seconds` of the phase that is open now as phase `to`'s instead."""
        if self.open_phase is not None:
            self._add(self.open_phase, -seconds)
            self._add(to, seconds)

    def _add(self, name: str, seconds: float) -> None:
        self.total[name] += seconds
        self._lap[name] += seconds

    def _note_memory(self) -> None:
        """What was used since the last call is the open phase's."""
        used = _device_peak()
        if used is None:
            used = self._process.memory_info().rss
        else:
            self.device_peak = max(self.device_peak, used)
        if self.open_phase is not None:
            self._memory[self.open_phase] = max(self._memory.get(self.open_phase, 0), used)

    def lap(self) -> dict[str, float]:
        """Seconds per phase since the last call."""
        lap, self._lap = dict(self._lap), defaultdict(float)
        return lap

    def lap_memory(self) -> dict[str, int]:
        """Bytes per phase since the last call: on a GPU the most that torch held in it.

        Without one the largest resident size of the process at the ends of the phase and of those within it.
        """
        lap, self._memory = self._memory, {}
        return lap


def _device_peak() -> int | None:
    """The most that torch held on the GPU since the last call, in bytes; None without one."""
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def _wait_for_device() -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
