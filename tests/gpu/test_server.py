"""A server on another GPU than the trainer's, whose weights are broadcast over NCCL."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from atrl.data.geometry import GeometryProblems
from atrl.data.prompts import PromptBuilder
from atrl.models.load import LoadedModel, PretrainedModel
from atrl.rollout.base import Sampling
from atrl.rollout.server import VllmServerSampler
from atrl.rollout.settings import RolloutSettings
from tests.integration.conftest import needs_vllm, running_server
from tests.integration.test_samplers import worst_difference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a CUDA device"),
    needs_vllm,
]

TOLERANCE = 2e-2
"""Of a log-probability: the engine's kernels are the GPU's and may use TF32. Other weights differ by more."""


def updated_twice(sampler: VllmServerSampler) -> list[float]:
    """The largest difference of a log-probability with the first weights, with others, and with the first again.

    The first come from the CPU, as in a run, whose policy is moved after the rollout callback is set up.
    """
    loaded = PretrainedModel().load(Path())
    policy = LoadedModel(loaded.model.eval(), loaded.processor, loaded.folder)
    handle = RolloutSettings(sampler=None).handle(policy, [])
    builder = PromptBuilder(processor=policy.processor)
    prompts = [builder.build(problem) for problem in GeometryProblems(train_size=4).load("train")]
    sampler.start(handle)
    policy.model.cuda()
    differences = []
    try:
        for version, change in enumerate((0.0, 0.05, -0.05)):
            with torch.no_grad():
                for parameter in policy.model.parameters():
                    generator = torch.Generator("cuda").manual_seed(1)
                    parameter.add_(torch.randn(parameter.shape, generator=generator, device="cuda"), alpha=change)
            sampler.update_weights(policy.model.named_parameters(), version=version)
            groups = sampler.generate(prompts, Sampling(group_size=4, max_response_tokens=32), seed=str(version))
            assert {group.policy_version for group in groups} == {version}
            differences.append(worst_difference(policy.model.cpu(), groups, handle.banned_ids))
            policy.model.cuda()
    finally:
        sampler.close()
    return differences


def test_a_server_on_this_gpu_by_files(tmp_path: Path) -> None:
    with running_server("tiny", tmp_path / "log", "--gpu-memory-utilization", "0.3") as url:
        assert max(updated_twice(VllmServerSampler(url=url, wait_seconds=300))) < TOLERANCE


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU for the trainer and another for the server")
def test_a_server_on_another_gpu_by_nccl(tmp_path: Path) -> None:
    second = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")[1]
    options = ("--gpu-memory-utilization", "0.3", "--weight-transfer-config", '{"backend": "nccl"}')
    with running_server("tiny", tmp_path / "log", *options, environment={"CUDA_VISIBLE_DEVICES": second}) as url:
        sampler = VllmServerSampler(url=url, wait_seconds=300, weight_transfer="nccl")
        assert max(updated_twice(sampler)) < TOLERANCE
