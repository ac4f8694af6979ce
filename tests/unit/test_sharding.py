"""A policy divided among two ranks by FSDP2, against the whole one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.ranks import run_ranks

LENGTHS = {"square": 5, "none": 7, "wide": 4}


def policy_of(checkpoint: Path):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(checkpoint, attn_implementation="sdpa")


def batch_of(checkpoint: Path, *names: str):
    from PIL import Image
    from transformers import AutoProcessor

    from atrl.data.geometry import GeometryProblems
    from atrl.data.prompts import PromptBuilder
    from atrl.types import Problem
    from tests.unit.conftest import rollout_batch

    wide = Image.linear_gradient("L").resize((210, 70)).convert("RGB")
    problems = {
        "square": GeometryProblems(train_size=1).load("train")[0],
        "wide": Problem(id="wide", question="What is in <image>?", answer="x", images=(wide,)),
        "none": Problem(id="none", question="What is 3 + 3?", answer="6"),
    }
    builder = PromptBuilder(processor=AutoProcessor.from_pretrained(checkpoint))
    return rollout_batch([(builder.build(problems[name]), LENGTHS[name]) for name in names])


def divided(checkpoint: Path):
    from torch.distributed.device_mesh import init_device_mesh

    from atrl.sharding import Sharding, shard

    policy = policy_of(checkpoint)
    shard(policy, init_device_mesh("cpu", (torch.distributed.get_world_size(),)), Sharding())
    return policy


def loss_of(policy, batch) -> torch.Tensor:
    """A sum over the rows, so that the ranks' losses add up to the batch's; other for every token."""
    from atrl.forward import ForwardPass

    return ForwardPass(temperature=1.0, banned_ids=(), chunk=3).logprobs(policy, batch)[0].sum()


def gradients_of_share(checkpoint: Path, shares: list[list[str]]) -> dict:
    """Each rank runs its share of the rows; what comes out, put together."""
    from torch.distributed.tensor import DTensor

    from atrl.sharding import whole

    policy = divided(checkpoint)
    loss = loss_of(policy, batch_of(checkpoint, *shares[torch.distributed.get_rank()]))
    loss.backward()
    return {
        "loss": loss.item(),
        "divided": all(isinstance(parameter, DTensor) for parameter in policy.parameters()),
        "gradients": {name: whole(parameter.grad) for name, parameter in policy.named_parameters()},
    }


@pytest.mark.parametrize("shares", [[["square"], ["wide"]], [["square", "wide"], ["none"]]], ids=["pictures", "text"])
def test_shares_add_up_to_the_whole(checkpoint: Path, shares: list[list[str]]) -> None:
    """Also where a rank has no picture: it must neither hang nor hold back the others' gradients."""
    policy = policy_of(checkpoint)
    loss = loss_of(policy, batch_of(checkpoint, *shares[0])) + loss_of(policy, batch_of(checkpoint, *shares[1]))
    loss.backward()
    ranks = run_ranks(gradients_of_share, checkpoint, shares)
    assert all(rank["divided"] for rank in ranks)
    assert sum(rank["loss"] for rank in ranks) == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in policy.named_parameters():
        scale = float(parameter.grad.abs().max())
        assert scale > 0, name
        for rank in ranks:
            torch.testing.assert_close(rank["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-5 * scale)


def untouched_vision(checkpoint: Path) -> set[str]:
    from dataclasses import replace

    policy = divided(checkpoint)
    loss_of(policy, replace(batch_of(checkpoint, "none"), pictures_somewhere=False)).backward()
    return {name for name, parameter in policy.named_parameters() if parameter.grad is None}


def test_where_no_rank_has_a_picture_the_vision_tower_gets_no_gradient(checkpoint: Path) -> None:
    """As in one process: the optimizer would move it on zeros."""
    vision = {name for name, _ in policy_of(checkpoint).named_parameters() if ".visual." in name}
    assert vision and run_ranks(untouched_vision, checkpoint) == [vision, vision]


def test_the_idle_vision_tower_adds_nothing(checkpoint: Path) -> None:
    from atrl.models.policy import idle_vision

    policy = policy_of(checkpoint)
    idle = idle_vision(policy)
    idle.backward()
    gradients = {name: parameter.grad for name, parameter in policy.named_parameters() if ".visual." in name}
    assert idle.item() == 0.0 and all(not gradient.any() for gradient in gradients.values())


def alone(checkpoint: Path) -> dict:
    """What the first rank can do without the others, and what is left on each afterwards."""
    from atrl.sharding import gathered
    from atrl.weight_sync import whole_state

    policy, batch = divided(checkpoint), batch_of(checkpoint, "square")
    losses = []
    with torch.no_grad(), gathered(policy):
        if torch.distributed.get_rank() == 0:
            with gathered(policy):
                losses = [loss_of(policy, batch).item() for _ in range(3)]
    own = sum(parameter.to_local().numel() for parameter in policy.parameters())
    loss_of(policy, batch).backward()  # divided again, or the ranks would wait for each other here
    return {"losses": losses, "own": own, "state": whole_state(policy)}


def test_within_gathered_a_rank_runs_the_model_alone(checkpoint: Path) -> None:
    policy = policy_of(checkpoint)
    expected = loss_of(policy, batch_of(checkpoint, "square")).item()
    first, second = run_ranks(alone, checkpoint)
    assert first["losses"] == [pytest.approx(expected, rel=1e-6)] * 3 and second["losses"] == []
    total = sum(parameter.numel() for parameter in policy.parameters())
    assert first["own"] + second["own"] == total and max(first["own"], second["own"]) < 0.6 * total
    assert second["state"] == {}
    names = {name for name, _ in policy.named_parameters()} | {
        name for name, _ in policy.named_buffers() if name in policy.state_dict()
    }
    assert first["state"].keys() == names
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in first["state"].items())


def computed_in(checkpoint: Path) -> dict:
    from torch.distributed.device_mesh import init_device_mesh

    from atrl.models.policy import response_logits
    from atrl.sharding import Sharding, shard

    policy = policy_of(checkpoint)
    shard(policy, init_device_mesh("cpu", (2,)), Sharding(compute_dtype=torch.bfloat16))
    logits = response_logits(policy, batch_of(checkpoint, "square"))
    logits.float().square().mean().backward()
    parameters = list(policy.parameters())
    return {
        "logits": logits.dtype,
        "held": {parameter.dtype for parameter in parameters},
        "gradients": {parameter.grad.dtype for parameter in parameters},
    }


def test_it_computes_in_bfloat16_and_keeps_float32(checkpoint: Path) -> None:
    expected = {"logits": torch.bfloat16, "held": {torch.float32}, "gradients": {torch.float32}}
    assert run_ranks(computed_in, checkpoint) == [expected, expected]
