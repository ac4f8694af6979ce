"""Adapters: which layers get one, what trains, what the policy is without them, and what is kept of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from atrl.checkpoint import load_tensors, read_checkpoint, write_checkpoint
from atrl.export.write import write_adapter, write_model
from atrl.models.load import LoadedModel, PretrainedModel
from atrl.models.lora import Lora, adapter_state, without_adapters
from atrl.models.policy import response_logits
from atrl.weight_sync import whole_state
from tests.unit.families import FAMILIES
from tests.unit.ranks import run_ranks
from tests.unit.test_sharding import batch_of, loss_of, policy_of
from tests.unit.test_templates import part_of
from tests.unit.test_weight_sync import adapted

LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""Linear layers of every family's language half, by hand; the output head is no part of it."""


def load(checkpoint: Path, **options) -> LoadedModel:
    return PretrainedModel(path=str(checkpoint), **options).load(checkpoint)


def adapted_names(model) -> set[str]:
    return {name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}


# Which layers, and what trains.


@pytest.mark.parametrize("modules", ["language", "everything"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_alone_are_trained(tmp_path: Path, family: str, modules: str) -> None:
    """In float32, beside weights that are as they were loaded."""
    folder = FAMILIES[family](tmp_path)
    before = dict(load(folder).model.named_parameters())
    model = load(folder, lora=Lora(modules=modules, rank=2), dtype="bfloat16").model
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    rest = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if name not in trained}
    assert rest.keys() == before.keys()
    assert all(torch.equal(rest[name], parameter.bfloat16()) for name, parameter in before.items())
    names = adapted_names(model)
    parts = {part_of(f"{name}.") for name in names}
    matrices = {name.removesuffix(".weight") for name, p in before.items() if p.ndim == 2 and "embed" not in name}
    if modules == "language":
        assert parts == {"language"} and {name.rpartition(".")[2] for name in names} == LAYERS
        assert len(names) == 7 * 2  # two blocks
    else:
        # Positions; and of Gemma a projection that is no layer, and an attention that does not call its own.
        marks = ("lm_head", "pos_embed", "mm_input_projection_weight", "head.attention")
        assert names == {name for name in matrices if not any(mark in name for mark in marks)}
        assert parts == {"language", "vision"} | ({"projector"} if family != "gemma3" else set())


def refusal(checkpoint: Path, modules, **options) -> str:
    """What is said before weights are read, and again where `check` was not asked."""
    model = PretrainedModel(path=str(checkpoint), lora=Lora(modules=modules), **options)
    with pytest.raises(ValueError, match=r".") as first:
        model.check()
    with pytest.raises(ValueError, match=r".") as second:
        model.load(checkpoint)
    assert str(first.value) == str(second.value) and "\n" not in str(first.value)
    return str(first.value)


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        (["q_porj"], "model.lora.modules names 'q_porj', and no linear layer is called so, did you mean 'q_proj'?"),
        (["embed_tokens"], "names 'embed_tokens', and no linear layer is called so: there are down_proj, "),
        ([], "model.lora.modules is an empty list"),
        ("langauge", "or a regular expression for some, as .*language_model.*q_proj, did you mean 'language'?"),
        ("q_proj", ": write [q_proj]"),
        (".*(", "model.lora.modules=.*( is no regular expression: "),
        (["lm_head"], "model.lora.modules names lm_head, whose weight is the embedding's too (tied)"),
        (".*", "model.lora.modules names lm_head, whose weight is the embedding's too (tied)"),
    ],
)
def test_layers_that_can_not_be_adapted_are_named(checkpoint: Path, modules, says: str) -> None:
    message = refusal(checkpoint, modules)
    assert message.startswith("model.lora.modules") and says in message.replace("nor a", "or a")


@pytest.mark.parametrize("part", ["vision", "projector"])
def test_what_is_frozen_is_not_adapted(checkpoint: Path, part: str) -> None:
    message = refusal(checkpoint, "everything", **{f"freeze_{part}": True})
    assert message.startswith(f"model.freeze_{part}=true and model.lora.modules=everything contradict each other at ")
    PretrainedModel(path=str(checkpoint), lora=Lora(), **{f"freeze_{part}": True}).check()


def test_an_untied_head_can_be_adapted(tmp_path: Path) -> None:
    """The stock Qwen2.5-VL of the tests has a head of its own."""
    names = adapted_names(load(FAMILIES["qwen2_5_vl"](tmp_path), lora=Lora(modules=["lm_head", "qkv"])).model)
    assert names == {"lm_head", *(f"model.visual.blocks.{block}.attn.qkv" for block in range(2))}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": 0}, "model.lora.rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "model.lora.alpha must be above 0, got 0.0"),
        ({"dropout": 1.0}, r"model.lora.dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        Lora(**options)


def test_the_seed_alone_makes_the_matrices(checkpoint: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    models = []
    for shift in (5, 6):
        torch.manual_seed(shift)
        models.append(load(checkpoint, lora=Lora(seed=3)).model)
    assert not torch.equal(torch.rand(1), expected)
    torch.manual_seed(5)
    load(checkpoint, lora=Lora(seed=3))
    assert torch.equal(torch.rand(1), expected)  # the global state is as it was
    one, other, third = (adapter_state(model) for model in [*models, load(checkpoint, lora=Lora(seed=4)).model])
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(one[name], third[name]) == ("lora_B" in name) for name in one)
    assert not any(tensor.any() for name, tensor in one.items() if "lora_B" in name)


# The policy with adapters and without.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_adapters_it_is_the_model_that_was_loaded(checkpoint: Path, dtype) -> None:
    """To the bit, also with what training adds, and the adapters' gradients are there again afterwards."""
    batch, plain = batch_of(checkpoint, "square", "wide"), policy_of(checkpoint).to(dtype).eval()
    policy = adapted(checkpoint, dtype).train()
    with torch.no_grad(), without_adapters(policy):
        inside = response_logits(policy, batch)
    assert torch.equal(inside, response_logits(plain, batch))
    assert not torch.equal(inside, response_logits(policy, batch))
    loss_of(policy, batch).backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in policy.parameters())


def test_without_adapters_a_plain_model_is_left_alone(policy) -> None:
    with without_adapters(policy):
        assert all(parameter.requires_grad for parameter in policy.parameters())


def gradients_by_hand(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Of A and B by the chain rule from that of the whole matrix: s·Bᵀ·G and s·G·Aᵀ."""
    merged, policy = policy_of(checkpoint), adapted(checkpoint)
    merged.load_state_dict(whole_state(policy), strict=False)
    loss_of(merged, batch_of(checkpoint, "square")).backward()
    full = {name: parameter.grad for name, parameter in merged.named_parameters()}
    found = {}
    for name, module in policy.named_modules():
        if hasattr(module, "lora_A"):
            a, b, gradient = module.lora_A.default.weight, module.lora_B.default.weight, full[f"{name}.weight"]
            found[f"{name}.lora_A.default.weight"] = 5 / 3 * b.T @ gradient
            found[f"{name}.lora_B.default.weight"] = 5 / 3 * gradient @ a.T
    return found


def assert_gradients_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.detach().abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * scale, msg=name)


def test_gradients_are_those_of_the_matrix_by_the_chain_rule(checkpoint: Path) -> None:
    policy = adapted(checkpoint)
    loss_of(policy, batch_of(checkpoint, "square")).backward()
    assert_gradients_close(
        {n: p.grad for n, p in policy.named_parameters() if p.requires_grad}, gradients_by_hand(checkpoint)
    )


def divided_gradients(checkpoint: Path, dtype: torch.dtype) -> dict:
    """Each rank runs its row, and the reference first: FSDP remembers its first pass."""
    from torch.distributed.device_mesh import init_device_mesh

    from atrl.sharding import Sharding, shard, whole

    policy = adapted(checkpoint, dtype)
    shard(policy, init_device_mesh("cpu", (2,)), Sharding())
    batch = batch_of(checkpoint, ["square", "none"][torch.distributed.get_rank()])
    with torch.no_grad(), without_adapters(policy):
        reference = response_logits(policy, batch)
    loss_of(policy, batch).backward()
    gradients = {name: whole(p.grad) for name, p in policy.named_parameters() if p.requires_grad}
    frozen = [name for name, p in policy.named_parameters() if not p.requires_grad and p.grad is not None]
    state = {} if dtype != torch.float32 else {"exported": whole_state(policy), "adapter": adapter_state(policy)}
    return {"reference": reference, "gradients": gradients, "frozen": frozen, **state}


def test_two_ranks_divide_base_and_adapters(checkpoint: Path) -> None:
    """Also where the base is bfloat16 and a unit of FSDP holds two kinds of numbers."""
    policy, base = adapted(checkpoint), policy_of(checkpoint)
    for name in ("square", "none"):
        loss_of(policy, batch_of(checkpoint, name)).backward()
    expected = {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}
    ranks = run_ranks(divided_gradients, checkpoint, torch.float32, seconds=300)
    for rank, name in zip(ranks, ("square", "none"), strict=True):
        assert_gradients_close(rank["gradients"], expected)
        assert rank["frozen"] == []
        with torch.no_grad():
            torch.testing.assert_close(rank["reference"], response_logits(base, batch_of(checkpoint, name)))
    assert ranks[1]["exported"] == ranks[1]["adapter"] == {}
    for state, own in ((ranks[0]["exported"], whole_state(policy)), (ranks[0]["adapter"], adapter_state(policy))):
        assert state.keys() == own.keys()
        assert all(torch.allclose(state[name], tensor, rtol=0, atol=1e-5) for name, tensor in own.items())
    for rank in run_ranks(divided_gradients, checkpoint, torch.bfloat16, seconds=300):
        assert rank["frozen"] == [] and {gradient.dtype for gradient in rank["gradients"].values()} == {torch.float32}
        assert rank["gradients"].keys() == expected.keys()


# What is kept.


@pytest.fixture
def exported(checkpoint: Path, processor, tmp_path: Path) -> tuple[object, Path]:
    """A policy with adapters, and the folder that it was left in."""
    policy = adapted(checkpoint).eval()
    loaded = LoadedModel(policy, processor, checkpoint)
    write_model(policy, loaded.processor, whole_state(policy), tmp_path / "model", instruction=None)
    write_adapter(policy, adapter_state(policy), tmp_path / "adapter")
    return policy, tmp_path


@torch.no_grad()
def test_the_merged_model_is_the_policy_and_needs_no_peft(exported, checkpoint: Path) -> None:
    policy, folder = exported
    batch = batch_of(checkpoint, "square", "wide")
    merged = load(folder / "model").model.eval()
    torch.testing.assert_close(response_logits(merged, batch), response_logits(policy, batch), rtol=0, atol=1e-5)
    assert dict(merged.named_parameters()).keys() == dict(policy_of(checkpoint).named_parameters()).keys()
    assert not list((folder / "model").glob("adapter*"))
    config = json.loads((folder / "model" / "config.json").read_text())
    assert "quantization_config" not in config and config["architectures"] == [type(policy).__name__]


@torch.no_grad()
def test_peft_loads_the_adapter_onto_the_base(exported, checkpoint: Path) -> None:
    from peft import PeftModel

    policy, folder = exported
    batch = batch_of(checkpoint, "square", "wide")
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["inference_mode"] is True
    theirs = PeftModel.from_pretrained(policy_of(checkpoint), folder / "adapter").eval()
    assert theirs.peft_config["default"].base_model_name_or_path == str(checkpoint)
    found = theirs.get_base_model()
    assert torch.equal(response_logits(found, batch), response_logits(policy, batch))


def step(policy, optimizer, checkpoint: Path) -> None:
    loss_of(policy, batch_of(checkpoint, "square")).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_checkpoint_holds_the_adapters_alone_and_goes_on_to_the_same_bits(checkpoint: Path, tmp_path: Path) -> None:
    def begin(seed: int):
        policy = load(checkpoint, lora=Lora(rank=2, seed=seed)).model
        return policy, torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)

    policy, optimizer = begin(0)
    step(policy, optimizer, checkpoint)
    folder = write_checkpoint(tmp_path, {"step": 1}, policy, optimizer)
    with safe_open(folder / "rank_00000.safetensors", "pt") as file:
        names = {name.removeprefix("model/") for name in file.keys() if name.startswith("model/")}  # noqa: SIM118
    assert names == {name for name, parameter in policy.named_parameters() if ".lora_" in name}
    step(policy, optimizer, checkpoint)
    other, its_optimizer = begin(1)
    load_tensors(read_checkpoint(folder), other, its_optimizer)
    step(other, its_optimizer, checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), other.parameters(), strict=True))


def test_all_weights_and_adapters_are_not_taken_for_each_other(checkpoint: Path, tmp_path: Path) -> None:
    policy = policy_of(checkpoint)
    folder = write_checkpoint(tmp_path, {"step": 1}, policy, torch.optim.AdamW(policy.parameters()))
    with pytest.raises(ValueError, match=r"has nothing for model/\S+lora_A\S+: it is of another model"):
        load_tensors(read_checkpoint(folder), adapted(checkpoint), None)


def test_the_reference_is_no_second_model(checkpoint: Path) -> None:
    """What scoring says of the policy without adapters is, to the bit, what it says of a copy of the base."""
    from atrl.forward import ForwardPass
    from atrl.models.policy import evaluating

    batch, forward = batch_of(checkpoint, "square", "none"), ForwardPass(temperature=0.7, banned_ids=(7,))
    policy, copied = adapted(checkpoint).train(), copy.deepcopy(policy_of(checkpoint)).eval()
    with torch.no_grad(), without_adapters(policy), evaluating(policy):
        found = forward.logprobs(policy, batch)[0]
    with torch.no_grad():
        expected = forward.logprobs(copied, batch)[0]
    assert torch.equal(found, expected)
