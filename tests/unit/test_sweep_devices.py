"""GPUs are dealt out to jobs; the locks are real, the GPUs are names."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from atrl.sweep.devices import claimed, visible


def test_jobs_get_different_devices(tmp_path):
    with claimed(1, ["0", "1", "2"], folder=tmp_path) as first, claimed(2, ["0", "1", "2"], folder=tmp_path) as second:
        assert (first, second) == (["0"], ["1", "2"])


def test_a_job_waits_for_as_many_as_it_needs_and_holds_none_meanwhile(tmp_path):
    names, got, waiting = ["0", "GPU-a/b"], [], threading.Event()

    def job() -> None:
        waiting.set()
        with claimed(2, names, folder=tmp_path, poll_seconds=0.01) as own:
            got.append(own)

    with claimed(1, names, folder=tmp_path):
        thread = threading.Thread(target=job)
        thread.start()
        waiting.wait()
        with claimed(1, names, folder=tmp_path, poll_seconds=0.001) as other:
            assert other == ["GPU-a/b"] and got == []
    thread.join(timeout=30)
    assert got == [names]


def test_more_than_there_are_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="at most 1, the GPUs that there are, got 2"),
        claimed(2, ["0"], folder=tmp_path),
    ):
        pass


def test_a_killed_jobs_devices_are_free_again(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from atrl.sweep.devices import claimed\n"
        "with claimed(1, ['0'], folder=Path(sys.argv[1])): print(1, flush=True); time.sleep(99)"
    )
    job = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    job.stdout.readline()
    job.kill()
    job.wait()
    with claimed(1, ["0"], folder=tmp_path, poll_seconds=0.01) as own:
        assert own == ["0"]


def test_what_is_visible_is_what_the_environment_says(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5")
    assert visible() == ["3", "GPU-5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible() == []
