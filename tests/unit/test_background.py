"""Work in other processes: the same results, in order, and errors that say what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

from atrl import parallel
from atrl.credit.background import Background, useful_workers


def squares(items, power):
    return [(item**power, os.getpid()) for item in items]


def priorities(items):
    return [os.nice(0) for _ in items]


def interrupted(items):
    os.kill(os.getpid(), signal.SIGINT)
    return items


def die(items):
    os._exit(1)


def nothing() -> None:
    pass


@pytest.fixture
def background():
    started = Background(2, option="credit.workers")
    started.open(nothing)
    yield started
    started.close()


def test_the_work_is_split_over_processes_and_comes_back_in_order(background):
    here = os.getpid()
    for count in (0, 1, 2, 7):
        wait = background.submit(squares, list(range(count)), 3)
        results = wait()
        assert [value for value, _ in results] == [item**3 for item in range(count)]
        assert all(process != here for _, process in results)


def test_the_training_comes_first(background):
    assert background.submit(priorities, [0, 0])() == [min(19, os.nice(0) + 10)] * 2


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
    ("cores", "cuda", "threads", "world", "useful"),
    [
        (8, False, 6, 1, 2),  # idle cores
        (64, False, 1, 1, 4),  # more would only take memory
        (8, False, 8, 1, 1),  # one in the gaps of the training's threads
        (2, False, 2, 1, 1),
        (1, False, 1, 1, 0),  # a single core has no gaps
        (8, False, 3, 2, 1),  # two ranks share the cores
        (4, False, 1, 4, 0),
        (8, True, 8, 1, 4),  # one core drives the GPU
        (2, True, 8, 1, 1),
        (4, True, 8, 4, 0),
    ],
)
def test_auto_takes_what_the_training_leaves(monkeypatch, cores, cuda, threads, world, useful):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(parallel, "world_size", lambda: world)
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
    with pytest.raises(RuntimeError, match=r"a worker process died .* credit\.workers=0"):
        background.submit(die, [1, 2])()


def test_ctrl_c_is_left_to_the_parent(background):
    assert background.submit(interrupted, [2, 3])() == [2, 3]


PARENT = """
import os, signal
from tests.unit.test_background import Background, nothing, squares

if __name__ == "__main__":
    started = Background(1, option="credit.workers")
    started.open(nothing)
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
    from atrl.credit.atrl import AtrlCredit

    scheme = AtrlCredit(workers=1)
    scheme.open()
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
