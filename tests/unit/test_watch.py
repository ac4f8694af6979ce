"""What a watched call is given, and what ends when it is over; hangs themselves are in `test_broken_runs.py`."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from atrl.rollout.base import Sampling
from atrl.rollout.watch import Watch, WatchedSampler
from atrl.types import Problem, Prompt

SOURCE = Path(__file__).parents[2] / "src"


class Plain:
    """Returns its arguments and remembers what was called."""

    name = "plain"

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def start(self, handle) -> None:
        self.calls.append(("start", handle.folder))

    def generate(self, prompts, sampling, *, seed):
        self.calls.append(("generate", seed))
        return [prompt.problem.id for prompt in prompts]

    def rest(self) -> None:
        self.calls.append(("rest",))

    def update_weights(self, parameters, version) -> None:
        self.calls.append(("update_weights", list(parameters), version))

    def close(self) -> None:
        self.calls.append(("close",))


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(Problem(id=f"p{n}", question="?", answer="!"), token_ids=[1], pixels={}, images=(), engine_token_ids=[1])
        for n in range(count)
    ]


def test_a_watched_sampler_does_what_the_sampler_does(tmp_path: Path) -> None:
    plain = Plain()
    watch = Watch(seconds=60, traceback_file=tmp_path / "hung.txt", rescue=lambda: pytest.fail("nothing hung"))
    watched = WatchedSampler(sampler=plain, watch=watch, usual_rollouts=8)
    assert watched.name == "plain"
    watched.start(type("Handle", (), {"folder": tmp_path}))
    assert watched.generate(prompts(2), Sampling(group_size=1), seed="0/1") == ["p0", "p1"]
    assert watched.generate([], Sampling(group_size=1), seed="0/2") == []
    watched.rest()
    watched.update_weights(iter([("w", 1)]), 3)
    watched.close()
    assert plain.calls == [
        ("start", tmp_path), ("generate", "0/1"), ("generate", "0/2"), ("rest",), ("update_weights", [("w", 1)], 3),
        ("close",),
    ]  # fmt: skip
    assert not (tmp_path / "hung.txt").exists()


def test_errors_of_the_sampler_come_through(tmp_path: Path) -> None:
    watch = Watch(seconds=60, traceback_file=tmp_path / "hung.txt", rescue=lambda: pytest.fail("nothing hung"))
    with pytest.raises(KeyError), watch.over("a call"):
        raise KeyError


@pytest.mark.parametrize(
    ("count", "group_size", "times"),
    [(16, 8, 1.0), (1, 1, 1 / 128), (512, 1, 4.0), (512, 8, 32.0)],
)
def test_larger_calls_get_more_time_in_proportion(count: int, group_size: int, times: float) -> None:
    """A step of 16 × 8 = 128 rollouts has the plain limit; 512 have four times as long."""
    seen = []

    class Recorded(Watch):
        def over(self, what, *, times=1.0):
            seen.append(times)
            return Watch.over(self, what, times=times)

    watch = Recorded(seconds=60, traceback_file=Path("unused"), rescue=str)
    watched = WatchedSampler(sampler=Plain(), watch=watch, usual_rollouts=128)
    watched.generate(prompts(count), Sampling(group_size=group_size), seed="0")
    assert seen == [times]


def run(body: str, folder: Path) -> subprocess.CompletedProcess:
    """`body` in a process of its own, with a watch of half a second; "saved" appears where the rescue ran."""
    head = f"""
    import sys, time, threading
    from pathlib import Path
    sys.path.insert(0, {str(SOURCE)!r})
    from atrl.rollout import watch as module
    def rescue():
        print("saved", flush=True)
        return "step 7 is safe"
    watch = module.Watch(seconds=0.5, traceback_file=Path({str(folder / "hung.txt")!r}), rescue=rescue)
    """
    code = textwrap.dedent(head) + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_a_call_with_more_time_is_not_ended_early(tmp_path: Path) -> None:
    done = run("with watch.over('slow', times=100):\n    time.sleep(2)\nprint('done')", tmp_path)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_nothing_is_ended_once_a_call_is_over(tmp_path: Path) -> None:
    """Neither by the thread nor by faulthandler, whose time is up here half a second after the call's."""
    done = run("module.GRACE_S = 0.5\nwith watch.over('quick'):\n    pass\ntime.sleep(3)\nprint('done')", tmp_path)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_what_the_main_thread_does_waits_once_time_is_up(tmp_path: Path) -> None:
    """The call returns while the policy is being saved: training must not go on beside that."""
    body = """
    def rescue():
        time.sleep(3)
        print("saved", flush=True)
        return "safe"
    watch = module.Watch(seconds=0.5, traceback_file=watch.traceback_file, rescue=rescue)
    with watch.over("late"):
        time.sleep(1.5)
    print("went on", flush=True)
    """
    done = run(body, tmp_path)
    assert (done.returncode, done.stdout) == (module_exit(), "saved\n"), done.stderr


def test_a_rescue_that_fails_or_hangs_does_not_keep_the_run_alive(tmp_path: Path) -> None:
    failing = "watch = module.Watch(seconds=0.5, traceback_file=watch.traceback_file, rescue=lambda: 1 / 0)\n"
    done = run(failing + "with watch.over('stuck'):\n    time.sleep(600)", tmp_path)
    assert done.returncode == module_exit()
    assert "stuck did not return in 0.5 s" in done.stderr and "saving failed (ZeroDivisionError" in done.stderr
    hanging = failing.replace("1 / 0", "time.sleep(600)") + "module.RESCUE_S, module.GRACE_S = 1, 600\n"
    done = run(hanging + "with watch.over('stuck'):\n    time.sleep(600)", tmp_path)
    assert done.returncode == 1 and "Timeout (" in done.stderr


def test_processes_of_the_run_are_ended_with_it(tmp_path: Path) -> None:
    body = """
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    with watch.over("stuck"):
        time.sleep(600)
    """
    done = run(body, tmp_path)
    child = int(done.stdout.splitlines()[0])
    with suppress(psutil.NoSuchProcess):  # ended already
        psutil.wait_procs([psutil.Process(child)], timeout=60)
    assert not psutil.pid_exists(child)


def module_exit() -> int:
    from atrl.rollout.watch import EXIT_HUNG

    return EXIT_HUNG
