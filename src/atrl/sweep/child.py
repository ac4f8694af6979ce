"""A process that does one job, watched from outside: its output goes to a file, and it ends when the sweep does."""

from __future__ import annotations

import ctypes
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

GRACE = ((signal.SIGINT, 600.0), (signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0))
"""Signals that end a child, and how many seconds it gets after each: a run that is interrupted finishes and saves its
step.
"""

ERROR = re.compile(r"(?:\[rank\d+\]: )?error(?P<process> \(process \d+\))?: ")
"""What the lines of a program begin with that say what the user can mend (`atrl.cli`); torch puts the rank before those
below a traceback."""


def run_child(command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str], lock: int) -> int:
    """Run `command` to its end, its output added to `log`, and return its exit code.

    It is in a session of its own, so that Ctrl-C reaches it once and from here. Whatever ends this function ends the
    child and all that it started; on Linux so does the end of this process, however it comes.

    Args:
        command: program and arguments.
        log: gets stdout and stderr.
        cwd: the working folder.
        environment: the whole of it.
        lock: a file descriptor that the child inherits.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, env=dict(environment),
            start_new_session=True, pass_fds=(lock,), preexec_fn=end_with_parent,
        )  # fmt: skip
    try:
        return child.wait()
    except BaseException:
        stop(child)
        raise


def stop(child: subprocess.Popen, grace: Sequence[tuple[signal.Signals, float]] = GRACE) -> None:
    """End `child` and its descendants, gently first; being interrupted again hurries on to the next signal."""
    family = [child.pid, *(process.pid for process in _descendants(child.pid))]
    for sign, seconds in grace:
        # torchrun hands signals on to its ranks and must outlive them; only the last one goes to all.
        for pid in family if sign == signal.SIGKILL else family[:1]:
            _send(pid, sign)
        try:
            child.wait(timeout=seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            family += [process.pid for process in _descendants(child.pid) if process.pid not in family]
            continue
        for pid in family[1:]:
            _send(pid, signal.SIGKILL)
        return


def last_words(log: Path, start: int) -> list[str]:
    """What the part of `log` from byte `start` on says of its end: its error lines, or else the last line.

    Every rank of a run says the same; it is given once. Those of the other ranks count where the first says nothing.
    """
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode("utf-8", errors="replace").splitlines()]
    found = [(match["process"], line[match.end() :]) for line in lines if (match := ERROR.match(line))]
    errors = [words for process, words in found if process is None] or [words for _, words in found]
    return list(dict.fromkeys(errors)) or [line for line in lines if line][-1:]


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _send(pid: int, sign: signal.Signals) -> None:
    try:
        psutil.Process(pid).send_signal(sign)
    except psutil.NoSuchProcess:
        return


def end_with_parent() -> None:
    """To be called in a child; on Linux the kernel sends it SIGTERM when its parent is gone, even if that was killed.

    For the kernel a parent is the thread that started the child, which must outlive it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
