"""Freed memory is kept, unless the user has chosen otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from atrl.allocator import OWN_SETTINGS, keep_freed_memory

FAULTS_OF_TEN_TENSORS = """
import resource
import torch
from atrl.quiet import set_environment
if {kept}:
    set_environment()
def make():
    torch.ones(1 << 22)  # 16 MiB, or 4096 pages
for _ in range(50):  # an aligned block takes a little more than one that was freed, so the first ones do not fit
    make()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    make()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, kept: bool, **environment: str) -> int:
    """Of ten tensors made one after the other, in a process of its own."""
    plain = {name: value for name, value in os.environ.items() if name not in OWN_SETTINGS}
    code = FAULTS_OF_TEN_TENSORS.format(kept=kept)
    done = subprocess.run(
        [sys.executable, "-c", code], env=plain | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_the_next_tensor_takes_the_pages_of_the_last():
    assert faults(kept=True) < 1000  # of 40,960
    own = {"MALLOC_MMAP_THRESHOLD_": "131072"}  # every tensor mapped by itself, as the user wants it
    assert faults(kept=True, **own) > 30_000


@pytest.mark.parametrize("name", OWN_SETTINGS)
def test_the_users_own_settings_stay(name):
    assert not keep_freed_memory({name: "1"})
