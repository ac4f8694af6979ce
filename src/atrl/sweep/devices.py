"""Deals a machine's GPUs out to jobs that run beside each other."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO


def visible() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def claimed(
    count: int, among: Sequence[str], *, folder: Path | None = None, poll_seconds: float = 1.0
) -> Iterator[list[str]]:
    """`count` GPUs that no other job has, for as long as the block lasts; waits until so many are free.

    A claim is a lock on a file, which the system takes back when the process ends, however it does. It takes all or
    none, so that jobs never wait for each other.

    Args:
        count: how many.
        among: the GPUs by name.
        folder: of the locks; None for one of the user's own on this machine, so that several sweeps get along.
        poll_seconds: between looks.

    Raises:
        ValueError: if there are fewer than `count`.
    """
    if count > len(among):
        raise ValueError(f"trainer.devices must be at most {len(among)}, the GPUs that there are, got {count}")
    folder = folder or Path(tempfile.gettempdir()) / f"atrl_devices_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        with ExitStack() as held:
            taken: list[str] = []
            for name in among:
                if len(taken) < count and (file := _lock(name, folder)) is not None:
                    held.enter_context(file)
                    taken.append(name)
            if len(taken) == count:
                yield taken
                return
        time.sleep(poll_seconds)


def _lock(name: str, folder: Path) -> IO[str] | None:
    """The open file whose lock is the claim on a GPU; None where another has it."""
    file = (folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
