"""python -m atrl.doctor as a user runs it, a real engine included."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import needs_vllm


def doctor(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "atrl.doctor", *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_quick_says_something_of_everything_but_the_engine(tmp_path: Path) -> None:
    secret = "wandb0123456789" * 4
    done = doctor(tmp_path, "--quick", "--json", WANDB_API_KEY=secret, WANDB_MODE="offline", HF_TOKEN=f"hf_{secret}")
    assert (done.returncode, done.stderr) == (0, "")
    found = {one["thing"]: one for one in json.loads(done.stdout)}
    assert {"Python", "packages", "processor", "memory", "disk", "METIS", "torchvision", "W&B", "HF hub"} <= set(found)
    assert found["disk"]["says"].endswith(str(tmp_path)) and "engine" not in found
    assert secret not in done.stdout


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="without /proc, root can write everywhere")
def test_a_problem_is_an_exit_code(tmp_path: Path) -> None:
    """Where nothing can be written: /proc takes no files, not even root's."""
    done = doctor(tmp_path, "--quick", "--outputs", "/proc/outputs")
    assert done.returncode == 1 and "problem  disk         /proc can't be written" in done.stdout
    assert re.search(r"\n1 problems, \d+ notes, \d+ ok\n$", done.stdout)


@needs_vllm
def test_the_engine_is_started_and_its_weights_are_followed(tmp_path: Path) -> None:
    done = doctor(tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    gaps = re.findall(r"ok +(log-probs|weight sync) +sampler and trainer differ by (\S+) nats", done.stdout)
    assert [name for name, _ in gaps] == ["log-probs", "weight sync"]
    assert all(0 < float(gap) < 1e-3 for _, gap in gaps)
    assert re.search(r"\n0 problems, \d+ notes, \d+ ok\n$", done.stdout)
