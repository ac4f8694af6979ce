"""A job's process: its output, its exit code, and its end with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from atrl.sweep.child import last_words, run_child, stop
from atrl.sweep.folder import locked
from tests.unit.waiting import is_gone, wait_for

DEAF = (
    "import signal, time\n"
    "for sign in (signal.SIGINT, signal.SIGTERM): signal.signal(sign, signal.SIG_IGN)\n"
    "print(1, flush=True)\n"
    "time.sleep(99)\n"
)
"""A program that only a kill ends."""


@pytest.fixture
def run(tmp_path):
    def start(code: str, **environment: str) -> int:
        with (tmp_path / "lock").open("w") as lock:
            return run_child(
                [sys.executable, "-c", code], log=tmp_path / "log", cwd=tmp_path,
                environment={**os.environ, **environment}, lock=lock.fileno(),
            )  # fmt: skip

    return start


def test_output_and_exit_code(run, tmp_path):
    code = "import os, sys; print(os.environ['X']); print('error: bad', file=sys.stderr); sys.exit(7)"
    assert run(code, X="said") == 7
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["error: bad", "said"]
    assert run("print('again')") == 0
    assert (tmp_path / "log").read_text().endswith("again\n")


def test_the_child_holds_the_lock_too(tmp_path):
    with locked(tmp_path) as lock:
        code = f"import os, pathlib; assert os.path.samestat(os.fstat({lock}), pathlib.Path('.lock').stat())"
        command = [sys.executable, "-c", code]
        assert run_child(command, log=tmp_path / "log", cwd=tmp_path, environment=os.environ, lock=lock) == 0


def test_what_interrupts_the_sweep_ends_the_child_and_its_children(run, tmp_path):
    """The grandchild ignores signals, so that only a kill ends it."""
    code = (
        "import signal, subprocess, sys, time, pathlib\n"
        f"inner = {DEAF!r}\n"
        "child = subprocess.Popen([sys.executable, '-c', inner], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "pathlib.Path('pid').write_text(str(child.pid))\n"
        "time.sleep(99)\n"
    )
    pid = tmp_path / "pid"

    def interrupt() -> None:
        wait_for(lambda: pid.is_file() and pid.read_text())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(code)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "KeyboardInterrupt" in (tmp_path / "log").read_text()  # it was asked before it was made to
    wait_for(lambda: is_gone(int(pid.read_text())))


def test_a_child_that_does_not_listen_is_killed():
    code = (
        "import signal, time; [signal.signal(s, signal.SIG_IGN) for s in (2, 15)]; print(1, flush=True); time.sleep(99)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child.stdout.readline()
    stop(child, [(signal.SIGINT, 0.1), (signal.SIGTERM, 0.1), (signal.SIGKILL, 30.0)])
    assert child.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
def test_a_killed_sweep_takes_its_child_along(tmp_path):
    program = (
        "import os, pathlib, sys\n"
        "from atrl.sweep.child import run_child\n"
        "code = 'import os, pathlib, time; pathlib.Path(\"pid\").write_text(str(os.getpid())); time.sleep(99)'\n"
        "here = pathlib.Path()\n"
        "run_child([sys.executable, '-c', code], log=here / 'log', cwd=here, environment=os.environ, lock=0)\n"
    )
    sweep = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdin=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    assert psutil.pid_exists(pid)
    sweep.kill()
    sweep.wait()
    wait_for(lambda: is_gone(pid))


def test_last_words(tmp_path: Path):
    log = tmp_path / "log"
    log.write_bytes(b"error: of an earlier start\n")
    start = log.stat().st_size
    with log.open("ab") as file:
        file.write(
            b"step 1\rstep 2\nerror: seed must be 0\nerror: seed must be 0\n\xff error: no\nerror: and this\nend\n"
        )
    assert last_words(log, start) == ["seed must be 0", "and this"]
    log.write_text("Traceback\n  File\nKeyError: 'x'\n\n")
    assert last_words(log, 0) == ["KeyError: 'x'"]
    log.write_text("")
    assert last_words(log, 0) == []


def test_a_line_below_the_traceback_of_a_rank_is_its_last_word(tmp_path: Path):
    """torch writes the rank before each line of it, once processes form a group."""
    log = tmp_path / "log"
    log.write_text("[rank0]: KeyError: 'x'\n[rank0]: error: credit=a raised it\n[rank1]: error: credit=a raised it\n")
    assert last_words(log, 0) == ["credit=a raised it"]


def test_what_another_rank_says_counts_where_the_first_says_nothing(tmp_path: Path):
    """torchrun's own summary comes last, and ends in a line of its frame."""
    log = tmp_path / "log"
    one = "[rank1]: KeyError: 'x'\n[rank1]: error (process 1): credit=a raised it\n"
    log.write_text(f"{one}error (process 2): a file is missing\n=====\n")
    assert last_words(log, 0) == ["credit=a raised it", "a file is missing"]
    log.write_text(f"{one}error: seed must be 0\n=====\n")
    assert last_words(log, 0) == ["seed must be 0"]
