"""Freed memory stays with the process, so that the next tensor of its size does not have to be mapped again."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

KEPT_BYTES = 1 << 30
"""How much may lie idle at the end of the heap; a block that is larger is given back at once."""

OWN_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Environment variables by which a user chooses the allocator or its settings."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Ask the C library to keep what is freed; whether it could be asked.

    glibc returns a block of 128 KiB or more (later up to 32 MiB) to the kernel when it is freed, and every page of the
    next one costs a fault: 55,000 of them in an update of the tiny model, an eighth of its time (`docs/benchmarks.md`).
    Nothing is done on other systems, nor where the `environment` holds settings of the user's own.
    """
    if any(name in environment for name in OWN_SETTINGS):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  other C libraries' mallopt knows other numbers
        set_option = library.mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; no such handle (Windows)
        return False
    return all(set_option(option, KEPT_BYTES) == 1 for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
