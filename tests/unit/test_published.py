"""Published checkpoints without their weights: what the loading path finds in them, and how FSDP2 divides them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import distributed

from atrl.credit.atrl import AtrlCredit
from atrl.models.families import check_family, vision_tower
from atrl.models.load import PretrainedModel
from atrl.models.published import published_config, published_names
from atrl.plan.hardware import Hardware
from atrl.plan.job import Engine, Job, Lengths, Precision
from atrl.plan.memory import plan_memory
from atrl.plan.shape import shape_of
from atrl.preflight import check_layers
from atrl.sharding import Sharding, is_sharded, own_part, shard
from atrl.weight_sync import named_parameters

LARGE = [name for name in published_names() if "32B" in name or "72B" in name]
H100 = Hardware(
    name="H100", memory_gib=79.6, peak_tflops=989, float32_tflops=67, bandwidth_gb=3350, node_gb=450, network_gb=50
)


def on_meta(name: str):
    """The model with parameters that take no memory, as transformers builds it."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.for_model(**published_config(name)))


@cache
def unchanged(name: str):
    """One that no test changes."""
    return on_meta(name)


def each(prefix: str, names: str, *kinds: str) -> set[str]:
    return {f"{prefix}{name}.{kind}" for name in names.split() for kind in kinds}


def qwen2_5_names(config: dict) -> set[str]:
    """The keys of ``model.safetensors.index.json`` on the hub; 729 for 7B."""
    names = each("visual.", "merger.mlp.0 merger.mlp.2", "weight", "bias")
    names |= {"visual.patch_embed.proj.weight", "visual.merger.ln_q.weight"}
    for block in range(config["vision_config"]["depth"]):
        names |= each(f"visual.blocks.{block}.", "norm1 norm2", "weight")
        names |= each(
            f"visual.blocks.{block}.", "attn.qkv attn.proj mlp.gate_proj mlp.up_proj mlp.down_proj", "weight", "bias"
        )
    for layer in range(config["text_config"]["num_hidden_layers"]):
        names |= each(f"model.layers.{layer}.self_attn.", "q_proj k_proj v_proj", "weight", "bias")
        names |= each(
            f"model.layers.{layer}.",
            "input_layernorm post_attention_layernorm self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj",
            "weight",
        )
    return names | {"model.embed_tokens.weight", "model.norm.weight"}


def qwen3_names(config: dict) -> set[str]:
    """Likewise; 750 for 8B."""
    mergers = ["merger.", *(f"deepstack_merger_list.{index}." for index in range(3))]
    names = {"model.visual.pos_embed.weight"} | each("model.visual.", "patch_embed.proj", "weight", "bias")
    for merger in mergers:
        names |= each(f"model.visual.{merger}", "norm linear_fc1 linear_fc2", "weight", "bias")
    for block in range(config["vision_config"]["depth"]):
        names |= each(
            f"model.visual.blocks.{block}.",
            "norm1 norm2 attn.qkv attn.proj mlp.linear_fc1 mlp.linear_fc2",
            *("weight", "bias"),
        )
    for layer in range(config["text_config"]["num_hidden_layers"]):
        names |= each(
            f"model.language_model.layers.{layer}.",
            "input_layernorm post_attention_layernorm mlp.gate_proj mlp.up_proj mlp.down_proj "
            "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj self_attn.q_norm self_attn.k_norm",
            "weight",
        )
    return names | each("model.language_model.", "embed_tokens norm", "weight")


NAMES = {"qwen2_5_vl": qwen2_5_names, "qwen3_vl": qwen3_names}


@pytest.mark.parametrize("name", published_names())
def test_the_parts_that_training_asks_for_are_found(name: str, tmp_path: Path) -> None:
    config, model = published_config(name), unchanged(name)
    check_family(model.config, name)
    shape = shape_of(config, name)
    assert sum(parameter.numel() for parameter in vision_tower(model).parameters()) == shape.vision.parameters
    projector = sum(parameter.numel() for key, parameter in vision_tower(model).named_parameters() if "merger" in key)
    assert projector == shape.vision.merger_parameters
    assert all(hasattr(model, method) for method in ("get_image_features", "get_video_features"))
    (tmp_path / "config.json").write_text(json.dumps(dict(config)))
    component = PretrainedModel(path=str(tmp_path))
    component.check()
    assert component.model_type() == config["model_type"]
    check_layers(AtrlCredit(heads=((shape.text.layers - 1, shape.text.heads - 1),)), component)
    with pytest.raises(ValueError, match=r"credit\.heads names"):
        check_layers(AtrlCredit(heads=((shape.text.layers, 0),)), component)


@pytest.mark.parametrize("name", published_names())
def test_what_the_weight_sync_sends_has_the_names_of_the_published_checkpoint(name: str) -> None:
    """By transformers' own way back from its names, which `model/` is written by as well."""
    from transformers.core_model_loading import revert_weight_conversion

    config, model = published_config(name), unchanged(name)
    expected = NAMES[config["model_type"]](config)
    if not config["tie_word_embeddings"]:
        expected |= {"lm_head.weight"}
    assert set(revert_weight_conversion(model, dict(named_parameters(model)))) == expected


def test_the_names_are_as_many_as_the_published_indices_have() -> None:
    for name, count in (("Qwen/Qwen2.5-VL-7B-Instruct", 729), ("Qwen/Qwen3-VL-8B-Instruct", 750)):
        config = published_config(name)
        assert len(NAMES[config["model_type"]](config)) + 1 == count  # and the output head


@pytest.fixture
def fake_ranks() -> Iterator[object]:
    """`fake_ranks(8)` is a mesh of eight ranks, seven of which do not exist; none waits for another."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def mesh(world: int):
        distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
        return init_device_mesh("cpu", (world,))

    yield mesh
    distributed.destroy_process_group()


@pytest.mark.parametrize(("name", "world"), [(name, 8) for name in published_names()] + [(name, 32) for name in LARGE])
def test_fsdp_divides_it_as_the_planner_says(name: str, world: int, fake_ranks) -> None:
    """A unit for each block and one for the rest; a rank holds what is planned, up to rows that don't divide evenly."""
    model, shape = on_meta(name), shape_of(published_config(name), name)
    shard(model, fake_ranks(world), Sharding(compute_dtype=torch.bfloat16))
    units = [type(module).__name__ for module in model.modules() if is_sharded(module)]
    assert len(units) == 1 + shape.text.layers + shape.vision.layers
    own = sum(own_part(parameter).numel() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters
    job = Job(
        model=shape,
        precision=Precision(weights=4, compute=2),
        lengths=Lengths(prompt=1000, image=800, response=1000, response_mean=500),
        engine=Engine(name="vllm", weights=2, share=0.5, sequences=64, sleeps=True),
        gpus=world,
        gpus_per_node=8,
        strategy="fsdp",
        checkpointing=True,
        prompts=world,
        group=8,
        micro_batch=1,
    )
    assert own * 4 == pytest.approx(plan_memory(job, H100).part("weights").update, rel=2e-3)
