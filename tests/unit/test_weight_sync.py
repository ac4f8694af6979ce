"""What a sampler gets of the policy: every weight once, whole, under its own name, adapters merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atrl.models.lora import Lora, without_adapters
from atrl.weight_sync import named_parameters, parameter_forms
from tests.unit.ranks import run_ranks

TARGETS = r".*language_model.*\.(q_proj|v_proj|down_proj)|.*visual.*\.qkv"


def load(checkpoint: Path):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(checkpoint, attn_implementation="sdpa")


def adapted(checkpoint: Path, dtype: torch.dtype = torch.float32, **options):
    """The policy with adapters that are not zero, as they would be at the start."""
    policy = load(checkpoint).to(dtype)
    Lora(**{"rank": 3, "alpha": 5, "modules": TARGETS} | options).put_into(policy)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    return policy


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_a_plain_policys_weights_are_its_own_memory(policy) -> None:
    expected = dict(policy.named_parameters())
    found = dict(named_parameters(policy))
    assert_same(found, expected)
    assert all(found[name].data_ptr() == expected[name].data_ptr() for name in expected)
    assert not any(tensor.requires_grad for tensor in found.values())
    assert "lm_head.weight" not in found  # tied to the embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_merged_as_peft_merges_them(checkpoint: Path, dtype) -> None:
    from peft.tuners.lora import LoraLayer

    policy = adapted(checkpoint, dtype)
    plain, before = dict(load(checkpoint).named_parameters()), {n: p.clone() for n, p in policy.named_parameters()}
    found = {name: tensor.clone() for name, tensor in named_parameters(policy)}
    assert list(found) == list(plain)
    changed = {name for name in plain if not torch.equal(found[name], plain[name].to(dtype))}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj", "down_proj", "qkv"}
    assert all(name.endswith(".weight") for name in changed)
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.named_parameters())  # left as it was
    for module in policy.modules():
        if isinstance(module, LoraLayer):
            module.merge()  # in place
    theirs = {n.replace(".base_layer", ""): p for n, p in policy.named_parameters() if not p.requires_grad}
    assert_same(found, {name: theirs[name] for name in plain})


def test_a_step_s_autocast_does_not_round_what_is_merged(checkpoint: Path) -> None:
    """The sync is the end of a training step, which runs inside of it with `trainer.precision=bf16-mixed`."""
    policy = adapted(checkpoint)
    expected = dict(named_parameters(policy))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(dict(named_parameters(policy)), expected)


def test_merging_by_hand(checkpoint: Path) -> None:
    """B = (1, 2, 0, …)ᵀ and A = (3, 0, …) with s = alpha / rank = 2 add 6 and 12 to the first column of W."""
    policy = adapted(checkpoint, rank=1, alpha=2, modules=r".*layers\.0\.self_attn\.q_proj")
    (layer,) = [module for module in policy.modules() if hasattr(module, "lora_A")]
    with torch.no_grad():
        layer.lora_A["default"].weight.zero_()[0, 0] = 3
        layer.lora_B["default"].weight.zero_()[:2, 0] = torch.tensor([1.0, 2.0])
    expected = layer.base_layer.weight.detach().clone()
    expected[0, 0] += 6
    expected[1, 0] += 12
    found = dict(named_parameters(policy))["model.language_model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_without_adapters_the_weights_are_those_that_were_loaded(checkpoint: Path) -> None:
    policy = adapted(checkpoint)
    with without_adapters(policy):
        assert_same(dict(named_parameters(policy)), dict(load(checkpoint).named_parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forms_are_those_of_what_comes(checkpoint: Path, dtype) -> None:
    for policy in (load(checkpoint).to(dtype), adapted(checkpoint, dtype)):
        expected = [(name, tensor.dtype, tensor.shape) for name, tensor in named_parameters(policy)]
        assert parameter_forms(policy) == expected


def whole_on_each_rank(checkpoint: Path, with_adapters: bool) -> dict:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    policy = adapted(checkpoint) if with_adapters else load(checkpoint)
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in policy.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in policy.parameters())
    first = torch.distributed.get_rank() == 0
    forms = parameter_forms(policy) if first else None  # of one rank alone: it doesn't wait for the other
    found = dict(named_parameters(policy))
    assert forms is None or forms == [(name, tensor.dtype, tensor.shape) for name, tensor in found.items()]
    assert not any(isinstance(tensor, DTensor) for tensor in found.values())
    return {name: tensor.clone() for name, tensor in found.items()}


@pytest.mark.parametrize("with_adapters", [False, True])
def test_a_sharded_policys_weights_arrive_whole_on_every_rank(checkpoint: Path, with_adapters: bool) -> None:
    expected = dict(named_parameters(adapted(checkpoint) if with_adapters else load(checkpoint)))
    for found in run_ranks(whole_on_each_rank, checkpoint, with_adapters):
        assert list(found) == list(expected)
        for name, tensor in expected.items():  # products of shards add up in another order
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5 if with_adapters else 0, msg=name)
