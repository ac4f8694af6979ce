"""Where benchmarks train: what `--trainer` becomes of atrl's settings and TRL's, and how a GPU is measured."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from atrl.config import read_section
from atrl.sections import TrainerSettings
from tests.unit.test_step_benchmark import script, scripts_find_each_other  # noqa: F401

WHERE = {"cpu": ("cpu", "32-true"), "gpu": ("cuda", "bf16-mixed")}


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch believes that there is one; notes when it was waited for, and when its peak was forgotten."""
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 40)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 70)
    return calls


def step_arguments(monkeypatch: pytest.MonkeyPatch, *given: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["step.py", *given])
    return script("step").parse()


def test_a_gpu_is_taken_where_there_is_one_unless_the_cpu_is_asked_for(monkeypatch) -> None:
    device = script("device")
    for there, default in ((True, "gpu"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device.trainer_of(None) == default and device.trainer_of("cpu") == "cpu"
    with pytest.raises(SystemExit, match="--trainer gpu needs a CUDA device"):
        device.trainer_of("gpu")


@pytest.mark.parametrize("trainer", WHERE)
def test_the_configs_train_where_they_are_told(trainer: str, tmp_path: Path, monkeypatch) -> None:
    """Those of all three runs; comparing gradients leaves autocast out, and an engine gets its share."""
    arguments = step_arguments(monkeypatch, "--trainer", trainer, "--engine-share", "0.25", "--rollout", "vllm")
    settings = script("device").overrides("vllm", trainer, share=0.25, threads=3)
    sides = script("step_sides")
    composed = [
        script("rotation").composed(settings, str(tmp_path)),
        sides.composed(arguments, tmp_path),
        script("rollout_memory").composed(
            argparse.Namespace(**vars(arguments), dtype="bfloat16", compiled=True, steps=30), tmp_path
        ),
    ]
    for config in composed:
        assert (config.trainer.accelerator, config.trainer.precision) == WHERE[trainer]
        assert config.rollout.sampler.gpu_memory_utilization == 0.25
    assert composed[0].trainer.threads == 3 and composed[1].trainer.threads is None
    assert composed[2].rollout.sampler.dtype == "bfloat16"
    exact = sides.composed(arguments, tmp_path, "trainer.precision=32-true")
    assert (exact.trainer.accelerator, exact.trainer.precision) == (WHERE[trainer][0], "32-true")


def test_without_an_engine_it_has_no_share(tmp_path: Path, monkeypatch) -> None:
    arguments = step_arguments(monkeypatch, "--trainer", "cpu", "--engine-share", "0.25")
    assert "gpu_memory_utilization" not in script("step_sides").composed(arguments, tmp_path).rollout.sampler


@pytest.mark.parametrize(("trainer", "cpu", "bf16"), [("cpu", True, False), ("gpu", False, True)])
def test_trl_trains_where_atrl_does_in_the_same_precision(
    trainer: str, cpu: bool, bf16: bool, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", SimpleNamespace(GRPOConfig=SimpleNamespace))
    config = script("step_sides").composed(step_arguments(monkeypatch, "--trainer", trainer), tmp_path)
    own, sizes = read_section(config.trainer, TrainerSettings), {"prompts": 2, "group_size": 4, "micro_batch": 8}
    found = script("trl_peer").settings(trainer=own, tokens=8, steps=1, learning_rate=1.0, **sizes)
    assert (found.use_cpu, found.bf16) == (cpu, bf16)


def test_the_other_side_s_clock_waits_for_the_gpu(a_gpu: list[str], monkeypatch) -> None:
    """At both ends: else each side's launched work would be the other's."""
    peer = script("trl_peer")
    clock = SimpleNamespace(perf_counter=lambda: a_gpu.append("clock") or time.perf_counter())
    monkeypatch.setattr(peer, "time", clock)
    turns = peer.Turns()
    turns._go.release()
    turns.on_step_begin(None, None, None)
    a_gpu.append("step")
    turns.on_step_end(None, None, None)
    assert a_gpu == ["wait", "clock", "step", "wait", "clock"]


def test_peaks_that_the_run_s_timer_noted_count(a_gpu: list[str]) -> None:
    """It forgets torch's own at the end of each phase; what is held before is not a peak."""
    device = script("device")
    assert device.peak_bytes("cuda") == 70 and device.peak_bytes("cuda", noted=90) == 90
    assert device.held_bytes("cuda") == 40 and a_gpu == ["reset"]


def test_on_the_cpu_peaks_are_the_process_s(a_gpu: list[str]) -> None:
    """Also beside a GPU."""
    device = script("device")
    assert device.peak_bytes("cpu") > 10**7 and device.held_bytes("cpu") > 10**7 and a_gpu == []


@pytest.mark.parametrize(("given", "left"), [({}, "0"), ({"CUDA_VISIBLE_DEVICES": "2,3"}, "2")])
def test_trl_sees_one_gpu(given: dict[str, str], left: str) -> None:
    script("device").use_one_gpu(given)
    assert given == {"CUDA_VISIBLE_DEVICES": left}


def test_numbers_of_frames_without_room_are_said(monkeypatch) -> None:
    benchmark = script("video_memory")

    def no_room(arguments, frames: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(benchmark, "measure", no_room)
    assert benchmark.measured(None, 64) == {"frames": 64, "out_of_memory": True}
