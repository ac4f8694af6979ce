"""Who may write to a run's folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from atrl.claim import claim

HOLDER = """
import os, sys, time
from pathlib import Path
from atrl.claim import claim
claim(Path(sys.argv[1]))
child = os.fork()
if not child:
    time.sleep(600)
print(child, flush=True)
sys.stdin.read()
"""


def test_a_folder_is_one_run_s_until_that_ends(tmp_path: Path) -> None:
    """Also where a worker of a run that was killed still lives."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(ValueError, match=r"is the folder of a run that is going on: set another hydra\.run\.dir"):
            claim(tmp_path)
        holder.kill()
        holder.wait()
        claim(tmp_path)
        claim(tmp_path)  # its own
    finally:
        os.kill(child, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []
