"""The engine beside the trainer on one GPU: sleep gives memory back, and waking loses no weight."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atrl.rollout.base import Sampling
from atrl.rollout.vllm import VllmSampler
from atrl.weight_sync import named_parameters

REPOSITORY = Path(__file__).parents[2]
SHARE = 0.3

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """A policy on the GPU with random weights, what a sampler must know of it, and two prompts."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from atrl.data.geometry import GeometryProblems
    from atrl.data.prompts import PromptBuilder
    from atrl.models import scratch
    from tests.integration.test_samplers import _handle

    folder = scratch.build(tmp_path_factory.mktemp("tiny"))
    processor = AutoProcessor.from_pretrained(folder)
    policy = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval().cuda()
    problems = GeometryProblems(train_size=2).load("train")
    return policy, _handle(folder, processor, policy), [PromptBuilder(processor=processor).build(p) for p in problems]


def largest_difference(policy, handle, groups) -> float:
    from atrl.experience import build_experience
    from atrl.forward import ForwardPass

    batch = build_experience(groups, pad_id=0, device=policy.device)
    with torch.no_grad():
        logprobs, _ = ForwardPass(temperature=1.0, banned_ids=handle.banned_ids).logprobs(policy, batch)
    return float((logprobs - batch.sampler_logprobs)[batch.response_mask].abs().max())


@pytest.mark.parametrize("level", [0, 1, 2])
def test_rest_gives_memory_back_and_new_weights_bring_all_of_it_again(tiny, level: int) -> None:
    policy, handle, prompts = tiny
    sampler = VllmSampler(gpu_memory_utilization=SHARE, sleep_level=level)
    sampler.start(handle)
    try:
        sampling = Sampling(group_size=4, max_response_tokens=16)
        for version in range(1, 4):
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.02)
            sampler.update_weights(named_parameters(policy), version=version)
            groups = sampler.generate(prompts, sampling, seed=f"0/{version}")
            assert largest_difference(policy, handle, groups) < 1e-3
            awake, total = torch.cuda.mem_get_info()
            sampler.rest()
            given_back = torch.cuda.mem_get_info()[0] - awake
            assert given_back > 0.5 * SHARE * total if level else abs(given_back) < 0.01 * total
    finally:
        sampler.close()


def test_a_share_that_is_not_free_is_named_before_the_engine_starts(tiny) -> None:
    _, handle, _ = tiny
    total = torch.cuda.mem_get_info()[1]
    with pytest.raises(ValueError, match=r"rollout.sampler.gpu_memory_utilization=0.9 asks for .*: try 0\.\d"):
        VllmSampler(gpu_memory_utilization=0.9).start(replace(handle, training_bytes=total // 2))


def run_train(folder: Path, *overrides: str) -> list[dict[str, str]]:
    """The rows of the metrics of a run of three steps on the GPU."""
    command = [
        sys.executable, REPOSITORY / "train.py", "trainer=gpu", "trainer.precision=32-true", "logger=csv",
        "trainer.max_steps=3", "trainer.evaluate_samples=8", f"rollout.sampler.gpu_memory_utilization={SHARE}",
        "rollout.check_sync_every=1", f"hydra.run.dir={folder}", *overrides,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=540)
    assert "from the trainer's" not in (folder / "train.log").read_text()
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get("rollout/logprob_gap_max")]


@pytest.mark.parametrize("level", [1, 2])
def test_a_run_whose_engine_sleeps_during_updates(tmp_path: Path, level: int) -> None:
    rows = run_train(tmp_path, f"rollout.sampler.sleep_level={level}")
    assert len(rows) == 3 and all(float(row["rollout/logprob_gap_max"]) < 1e-3 for row in rows)


def test_a_run_in_the_precision_of_trainer_gpu(tmp_path: Path) -> None:
    """The step, and so the engine in it, runs inside the trainer's autocast; `run_train` looks for a disagreement."""
    assert len(run_train(tmp_path, "trainer.precision=bf16-mixed")) == 3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices")
def test_a_run_whose_processes_share_an_engine(tmp_path: Path) -> None:
    rows = run_train(tmp_path, "trainer.devices=2", "rollout.sampler.tensor_parallel_size=2")
    assert len(rows) == 3 and all(float(row["rollout/logprob_gap_max"]) < 1e-3 for row in rows)
