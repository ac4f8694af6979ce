"""The probe on a policy whose parameters are sharded over ranks by FSDP2."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.unit.attention import FULL, read
from tests.unit.ranks import run_ranks


def batch_of(checkpoint: Path):
    from transformers import AutoProcessor

    from atrl.data.geometry import GeometryProblems
    from atrl.data.prompts import PromptBuilder
    from tests.unit.conftest import rollout_batch

    builder = PromptBuilder(processor=AutoProcessor.from_pretrained(checkpoint))
    problems = GeometryProblems(train_size=2).load("train")
    return rollout_batch([(builder.build(problem), length) for problem, length in zip(problems, (5, 8), strict=True)])


def load(checkpoint: Path):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(checkpoint, attn_implementation="sdpa").eval()


def read_sharded(checkpoint: Path) -> dict:
    """On each rank: what the probe reads of the sharded policy on a training pass, and whether gradients came of it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    from atrl.credit.probe import AttentionProbe
    from atrl.models.policy import response_logits

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    policy, batch = load(checkpoint), batch_of(checkpoint)
    for layer in policy.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(policy.model.visual, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    torch.distributed.fsdp.register_fsdp_forward_method(policy, "get_image_features")
    probe = AttentionProbe(policy, [FULL])
    with probe.capture(batch) as recorder:
        logits = response_logits(policy, batch)
    logits.square().mean().backward()
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    return {
        "mass": recorder.results()[FULL].mass,
        "sharded": all(isinstance(parameter, DTensor) for parameter in policy.parameters()),
        "gradients": len(gradients),
    }


def test_a_sharded_policy_reads_like_a_whole_one(checkpoint: Path) -> None:
    whole = read(load(checkpoint), batch_of(checkpoint))
    for found in run_ranks(read_sharded, checkpoint):
        assert found["sharded"] and found["gradients"] > 0
        torch.testing.assert_close(found["mass"], whole.mass, atol=1e-5, rtol=0)
