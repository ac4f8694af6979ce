"""Worker processes that can be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from atrl.rewards.workers import KillableWorkers

GIB = 2**30


@pytest.fixture
def workers():
    pool = KillableWorkers(workers=1, cpu_seconds=1.0, wall_seconds=30.0, memory_bytes=GIB // 2)
    yield pool
    pool.close()


def test_results_come_in_order_and_the_worker_is_reused(workers):
    assert workers.run(pow, [(2, n) for n in range(20)]) == [2**n for n in range(20)]
    first, second = workers.run(os.getpid, [()]), workers.run(os.getpid, [()])
    assert first == second != [os.getpid()]


def test_no_calls_start_no_worker(workers):
    assert workers.run(pow, []) == []
    assert workers._pool is None


def test_a_sleeping_worker_is_killed_and_replaced():
    workers = KillableWorkers(workers=1, cpu_seconds=1.0, wall_seconds=3.0, memory_bytes=GIB // 2)
    (stuck,) = workers.run(os.getpid, [()])
    assert workers.run(time.sleep, [(3600,)]) == [None]
    with pytest.raises(ProcessLookupError):
        os.kill(stuck, 0)
    (fresh,) = workers.run(os.getpid, [()])
    assert fresh is not None
    assert fresh != stuck
    workers.close()


def test_a_computing_worker_is_killed_and_replaced(workers):
    (stuck,) = workers.run(os.getpid, [()])
    assert workers.run(pow, [(7, 10**10), (7, 2)]) == [None, 49]  # the first would take hours, in C
    with pytest.raises(ProcessLookupError):
        os.kill(stuck, 0)


def test_the_others_of_a_batch_are_unharmed(workers):
    assert workers.run(pow, [(7, 2), (7, 10**10), (0, -1), (7, 3)]) == [49, None, None, 343]


def test_memory_is_limited_and_given_back(workers):
    assert workers.run(len, [(b"1" * 1000,)]) == [1000]
    assert workers.run(bytes, [(GIB,)]) == [None]
    (small,) = workers.run(bytes, [(2**20,)])
    assert small == bytes(2**20)


def test_a_worker_that_dies_does_not_stop_the_run(workers):
    assert workers.run(os._exit, [(3,)]) == [None]
    assert workers.run(os.abort, [()]) == [None]
    assert workers.run(pow, [(2, 5)]) == [32]


def test_a_worker_killed_while_idle_is_replaced(workers):
    (idle,) = workers.run(os.getpid, [()])
    os.kill(idle, 9)
    assert workers.run(pow, [(2, 5)]) == [32]


def test_an_exit_in_a_call_does_not_exit_the_run(workers):
    assert workers.run(sys.exit, [(3,)]) == [None]


def test_close_ends_the_processes_and_a_later_call_starts_new_ones(workers):
    (first,) = workers.run(os.getpid, [()])
    workers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    workers.close()
    assert workers.run(pow, [(2, 5)]) == [32]


SCRIPT = """
import os, sys
from atrl.rewards.workers import KillableWorkers
def work():
    pool = KillableWorkers(workers=1, cpu_seconds=1, memory_bytes=2**29)
    print("WORKER", pool.run(os.getpid, [()])[0], flush=True)
    assert pool.run(pow, [(7, 10**10)]) == [None]
{start}
"""


def run_script(tmp_path, start):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(start=start))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, env=environment)


def test_workers_end_with_a_script_that_forgets_to_close_them(tmp_path):
    done = run_script(tmp_path, 'if __name__ == "__main__":\n    work()')
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr  # not even of the worker that was about to replace the killed one
    worker = int(done.stdout.split()[1])
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    done = run_script(tmp_path, "work()")
    assert done.returncode != 0
    assert "begin its work under `if __name__ == '__main__':`" in done.stderr
