"""Work in other processes: the same results, in order, and errors that say what to do."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

from atrl import parallel
from atrl.credit import background as background_module
from atrl.credit.background import Background, useful_workers

HERE = platform.node()


def squares(items, power):
    return [(item**power, os.getpid()) for item in items]


def policies(items):
    return [os.sched_getscheduler(0) for _ in items]


def squares_once_allowed(items, trained_in, allowed):
    """In any process but `trained_in` only once the file `allowed` is there, beside which it then leaves another."""
    if os.getpid() != trained_in:
        while not allowed.exists():
            time.sleep(0.01)
        (allowed.parent / f"share {os.getpid()} {time.perf_counter_ns()}").touch()
    return squares(items, 2)


def interrupted(items):
    os.kill(os.getpid(), signal.SIGINT)
    return items


def die(items):
    os._exit(1)


def nothing() -> None:
    pass


@pytest.fixture
def patient(monkeypatch):
    """Other tests at work beside this one may leave a process nothing for seconds."""
    monkeypatch.setattr(background_module, "LEAST_PATIENCE", 60.0)


@pytest.fixture
def background(patient):
    started = Background(2, option="credit.workers")
    started.open(nothing)
    started.submit(squares, [1], 2)()
    yield started
    started.close()


def test_the_first_items_are_worked_on_here(patient):
    """How long they take says when a process is late."""
    started = Background(1, option="credit.workers")
    started.open(nothing)
    assert started.submit(squares, [], 2)() == []
    assert [started.submit(squares, [2], 2)()[0][1] == os.getpid() for _ in range(2)] == [True, False]
    started.close()


def test_submitting_does_not_wait_for_the_work(background, tmp_path):
    """Which only begins once it has returned."""
    allowed = tmp_path / "allowed"
    collect = background.submit(squares_once_allowed, [3, 4], os.getpid(), allowed)
    allowed.touch()
    assert [(square, pid != os.getpid()) for square, pid in collect()] == [(9, True), (16, True)]


def test_the_work_is_split_over_processes_and_comes_back_in_order(background):
    here = os.getpid()
    for count in (0, 1, 2, 7):
        wait = background.submit(squares, list(range(count)), 3)
        results = wait()
        assert [value for value, _ in results] == [item**3 for item in range(count)]
        assert all(process != here for _, process in results)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux only")
def test_everything_else_comes_first(background):
    assert background.submit(policies, [0, 0])() == [os.SCHED_IDLE] * 2


@pytest.mark.parametrize("refused", [AttributeError, PermissionError])
def test_without_an_idle_class_the_priority_is_lower(monkeypatch, refused):
    def refuse(*arguments):
        raise refused

    lowered = []
    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    monkeypatch.setattr(os, "nice", lowered.append)
    background_module._give_way()
    assert lowered == [10]


@pytest.fixture
def blocked(background, tmp_path, monkeypatch):
    """Submits numbers that no other process squares until the file `allowed` is there, as it is at the end."""
    monkeypatch.setattr(background_module, "LEAST_PATIENCE", 0.1)
    here, allowed = os.getpid(), tmp_path / "allowed"
    yield (lambda: background.submit(squares_once_allowed, list(range(7)), here, allowed)), allowed
    allowed.touch()


def test_the_training_works_on_a_late_share_itself(blocked):
    submit, _ = blocked
    for wait in [submit() for _ in range(3)]:
        assert wait() == [(item**2, os.getpid()) for item in range(7)]


def test_nothing_is_handed_over_while_a_late_share_is_in_work(blocked, monkeypatch):
    """There would be nothing but waiting for it; afterwards the processes are used again."""
    submit, allowed = blocked
    submit()()
    with monkeypatch.context() as patched:
        patched.setattr(background_module, "wait", None)
        assert {process for _, process in submit()()} == {os.getpid()}
    allowed.touch()
    for _ in range(300):
        if os.getpid() not in {process for _, process in submit()()}:
            return
        time.sleep(0.1)
    pytest.fail("the processes were not used again")


def test_a_late_share_that_no_process_began_is_not_worked_on_twice(blocked, monkeypatch):
    """Of eight shares two are in work and three at most on their way; the others are taken back."""
    submit, allowed = blocked
    for wait in [submit() for _ in range(4)]:
        wait()
    allowed.touch()
    monkeypatch.setattr(background_module, "LEAST_PATIENCE", 60.0)
    while os.getpid() in {process for _, process in submit()()}:
        time.sleep(0.1)
    assert 2 + 2 <= len(list(allowed.parent.glob("share *"))) <= 5 + 2  # two of the last batch


def test_closing_does_not_wait_for_a_late_share(blocked, background):
    """Beside busy jobs it may be minutes away."""
    submit, allowed = blocked
    workers = [process.pid for process in background._processes]
    submit()()
    at_last = threading.Timer(20, allowed.touch)  # or the test would hang where it should fail
    at_last.start()
    background.close()
    at_last.cancel()
    assert not allowed.exists()
    assert len(workers) == 2 and not any(map(psutil.pid_exists, workers))


def test_a_share_is_waited_for_three_times_as_long_as_it_would_take_here(patient, monkeypatch):
    """7 items in 14 seconds are 2 each: 18 seconds for 3, and never less than the least."""
    patient_one = Background(0, option="credit.workers")
    clock = iter([100.0, 114.0])
    monkeypatch.setattr(background_module.time, "perf_counter", lambda: next(clock))
    patient_one.submit(squares, list(range(7)), 2)
    monkeypatch.setattr(background_module, "LEAST_PATIENCE", 0.1)
    assert patient_one.patience(3) == 18.0
    monkeypatch.setattr(background_module, "LEAST_PATIENCE", 20.0)
    assert patient_one.patience(3) == 20.0


def test_several_batches_wait_at_once(background):
    waits = [background.submit(squares, [batch, batch + 1], 2) for batch in range(5)]
    assert [[value for value, _ in wait()] for wait in waits] == [[b**2, (b + 1) ** 2] for b in range(5)]


@pytest.mark.parametrize("workers", [0, 2])
def test_without_open_processes_the_work_is_done_here(workers):
    assert Background(workers, option="credit.workers").submit(squares, [2], 2)() == [(4, os.getpid())]


def test_closing_twice_and_opening_again(background):
    background.close()
    background.close()
    assert background.submit(squares, [2], 2)()[0][1] == os.getpid()
    background.open(nothing)
    assert background.submit(squares, [2], 2)()[0][1] != os.getpid()


@pytest.mark.parametrize(
    ("cores", "cuda", "threads", "others", "useful"),
    [
        (8, False, 6, [], 2),  # idle cores
        (64, False, 1, [], 4),  # more would only take memory
        (8, False, 8, [], 1),  # one in the gaps of the training's threads
        (2, False, 2, [], 1),
        (1, False, 1, [], 0),  # a single core has no gaps
        (8, False, 3, [(HERE, 0, 8)], 1),  # two ranks share the cores
        (4, False, 1, [(HERE, 0, 4)] * 3, 0),
        (8, True, 8, [], 4),  # one core drives the GPU
        (2, True, 8, [], 1),
        (4, True, 8, [(HERE, 0, 4)] * 3, 0),
        (64, True, 1, [(HERE, 0, 64)] * 7 + [("elsewhere", 0, 64)] * 56, 4),  # eight nodes of eight ranks
        (8, True, 1, [(HERE, 8, 16)] * 7, 4),  # the launcher gave each rank cores of its own
        (8, False, 3, [(HERE, 4, 12)], 1),
    ],
)
def test_auto_takes_what_the_training_leaves(monkeypatch, cores, cuda, threads, others, useful):
    """Other ranks by their machine and the range of cores that they may run on."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    ranks = [(node, set(range(first, last))) for node, first, last in others]
    monkeypatch.setattr(parallel, "gather", lambda own: [own, *ranks])
    assert useful_workers() == useful


@pytest.mark.parametrize("useful", [0, 3])
def test_auto_starts_as_many_as_are_useful(monkeypatch, useful):
    asked = []
    monkeypatch.setattr("atrl.credit.background.useful_workers", lambda: useful)
    monkeypatch.setattr(
        "atrl.credit.background.ProcessPoolExecutor", lambda count, *_: asked.append(count) or ThreadPoolExecutor(1)
    )
    auto = Background("auto", option="credit.workers")
    auto.open(nothing)
    assert auto.is_open == bool(useful) and asked == [useful] * bool(useful)
    auto.close()


def test_a_process_that_dies_is_named(background):
    for _ in range(2):  # while it works, and before it is given work
        with pytest.raises(RuntimeError, match=r"a worker process died .* credit\.workers=0"):
            background.submit(die, [1, 2])()


def test_ctrl_c_is_left_to_the_parent(background):
    assert background.submit(interrupted, [2, 3])() == [2, 3]


PARENT = """
import os, signal
from tests.unit.test_background import Background, background_module, nothing, squares

background_module.LEAST_PATIENCE = 60

if __name__ == "__main__":
    started = Background(1, option="credit.workers")
    started.open(nothing)
    started.submit(squares, [1], 2)
    print(started.submit(squares, [2], 2)()[0][1], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    with (tmp_path / "worker").open("w") as printed:  # not a pipe, which the worker would hold open
        killed = subprocess.run(
            [sys.executable, tmp_path / "parent.py"], env=os.environ | {"PYTHONPATH": paths}, stdout=printed
        )
    assert killed.returncode == -signal.SIGKILL
    worker = int((tmp_path / "worker").read_text())
    for _ in range(300):
        if not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")


CLUSTERING = """
import os, sys

def state(names):
    return [*(name in sys.modules for name in names), os.environ["OMP_NUM_THREADS"]]

if __name__ == "__main__":
    from atrl.credit import background
    from atrl.credit.atrl import AtrlCredit

    background.LEAST_PATIENCE = 60
    scheme = AtrlCredit(workers=1)
    scheme.open()
    scheme._background.submit(lambda items: items, ["the first are worked on here"])
    print(scheme._background.submit(state, ["torch", "pymetis", "atrl.credit.clusters"])())
    scheme.close()
"""


def test_clustering_processes_are_small(tmp_path):
    """Importing torch would take a second and 200 MB of each."""
    (tmp_path / "train.py").write_text(CLUSTERING)
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, tmp_path / "train.py"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[False, True, True, '1']"


def test_errors_of_the_work_itself_come_through(background):
    with pytest.raises(TypeError):
        background.submit(squares, ["text"], 2)()


def test_processes_that_can_not_start_are_named():
    broken = Background(1, option="credit.workers")
    with pytest.raises(RuntimeError, match=r"no worker process could be started: .* credit\.workers=0"):
        broken.open(_fail)
    assert not broken.is_open


def _fail() -> None:
    os._exit(3)
