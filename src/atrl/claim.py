"""A folder belongs to one run at a time."""

from __future__ import annotations

import os
from pathlib import Path

_held: dict[Path, int] = {}
"""Descriptors of the folders that this process holds."""


def claim(folder: Path) -> None:
    """Hold `folder` until this process ends, in whatever way; where the file system knows no locks, nothing is held.

    What lies in a folder doesn't say whether a run is going on: it writes its first record when its model is loaded.
    Of one process that makes several runs the next may have the folder of the last.

    Raises:
        ValueError: if another process holds it.
    """
    import fcntl

    folder = folder.resolve()
    if folder in _held:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"{folder} is the folder of a run that is going on: set another hydra.run.dir, or wait for its end"
        ) from None
    except OSError:
        os.close(descriptor)
        return
    if not _held:
        os.register_at_fork(after_in_child=_let_go)
    _held[folder] = descriptor


def _let_go() -> None:
    """A worker that outlives a killed run for a moment must not keep the next one from going on."""
    while _held:
        os.close(_held.popitem()[1])
