"""Phases add up, whatever they hold."""

from __future__ import annotations

import pytest
import torch

from atrl import timing
from atrl.timing import PhaseTimer, WorkClock


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves by hand."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


def test_an_inner_phase_takes_its_time_from_the_outer(clock):
    timer = PhaseTimer()
    with timer.phase("update"):
        clock(1)
        with timer.phase("credit"):
            clock(3)
        clock(2)
    with timer.phase("credit"):
        clock(5)
    assert timer.lap() == {"update": 3, "credit": 8} and timer.lap() == {}
    assert timer.total["update"] == 3 and timer.total["credit"] == 8


def test_time_measured_elsewhere_is_recounted(clock):
    timer = PhaseTimer()
    with timer.phase("update"):
        clock(4)
        timer.recount(1.5, to="credit")
    timer.recount(9, to="credit")  # no phase is open: it is nobody's
    assert timer.lap() == {"update": 2.5, "credit": 1.5}


def test_an_error_ends_a_phase(clock):
    timer = PhaseTimer()
    with pytest.raises(KeyError), timer.phase("update"):
        clock(1)
        raise KeyError
    with timer.phase("sync"):
        clock(2)
    assert timer.lap() == {"update": 1, "sync": 2}


def test_unknown_phases_are_refused():
    with pytest.raises(AssertionError, match="unknown phase 'upddate'"), PhaseTimer().phase("upddate"):
        pass


def test_what_the_device_still_has_to_do_belongs_to_the_phase_that_launched_it(clock, monkeypatch):
    """A forward pass of 10 s, launched by "update", is not the credit's that comes after it."""
    queue = []
    monkeypatch.setattr(timing, "_wait_for_device", lambda: clock(sum(queue)) or queue.clear())
    timer = PhaseTimer()
    with timer.phase("update"):
        queue.append(10)
        with timer.phase("credit"):
            queue.append(1)
        queue.append(20)
    assert timer.lap() == {"update": 30, "credit": 1}


def test_work_on_the_processor_is_timed_as_it_is_done(clock):
    work = WorkClock()
    for seconds in (2, 3):
        with work.running(torch.device("cpu")):
            clock(seconds)
        clock(10)
    assert work.seconds == 5


def test_work_on_a_gpu_is_timed_by_events(monkeypatch):
    """In milliseconds on the GPU's own clock, once the last of them has passed there."""
    times, waited = iter([1000, 1250, 4000, 4500]), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time = next(times)

        def synchronize(self):
            waited.append(self.time)

        def elapsed_time(self, end):
            return end.time - self.time

    monkeypatch.setattr(torch.cuda, "Event", Event)
    work = WorkClock()
    for _ in range(2):
        with work.running(torch.device("cuda")):
            pass
    assert work.seconds == 0.75 and waited == [4500]


def test_memory_belongs_to_the_innermost_phase_that_is_open(monkeypatch):
    """Of what was measured at the ends of each phase and of those within it, the largest."""
    used = iter([5, 9, 30, 12, 7, 8])
    monkeypatch.setattr(timing, "_device_peak", lambda: next(used))
    timer = PhaseTimer()
    with timer.phase("update"):  # noqa: SIM117  5 was used before it
        with timer.phase("credit"):  # 9 until here
            pass  # 30
    # 12 after the credit
    with timer.phase("sync"):  # 7 between the two
        pass  # 8
    assert timer.lap_memory() == {"update": 12, "credit": 30, "sync": 8} and timer.lap_memory() == {}
    assert timer.device_peak == 30


def test_without_a_gpu_it_is_the_hosts():
    timer = PhaseTimer()
    with timer.phase("reward"):
        held = bytearray(64 << 20)
        held[::4096] = b"x" * len(held[::4096])
    assert timer.lap_memory()["reward"] >= len(held) and timer.device_peak == 0
