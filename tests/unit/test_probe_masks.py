"""The probe on language halves of further kinds: what it reads is the model's own, or it says that it can't."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from atrl.credit.masks import UNREAD_OPTIONS, MaskCheck, check_options
from atrl.credit.probe import AttentionProbe
from atrl.models import families
from tests.unit.attention import FULL, assert_close
from tests.unit.test_probe_families import IMAGE, SIZE, TEXT, VISION, drawn, prompts, regions_of

PATTERN = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 16}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
READ = {
    "cohere2": {"sliding_window": 12, "layer_types": PATTERN},
    "deepseek_v3": EXPERTS | LATENT | {"n_group": 1, "topk_group": 1, "num_key_value_heads": 4},
    "gemma3n_text": {"head_dim": 16, "sliding_window": 12, "layer_types": PATTERN, "num_kv_shared_layers": 1}
    | {"vocab_size_per_layer_input": SIZE, "hidden_size_per_layer_input": 8, "activation_sparsity_pattern": [0.0] * 3},
    "gemma4_text": {"head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1, "sliding_window": 12}
    | {"layer_types": [*PATTERN[:2], "full_attention"], "num_kv_shared_layers": 1, "hidden_size_per_layer_input": 0},
    "granite": {"attention_multiplier": 0.5},
    "lfm2": {"layer_types": ["full_attention", "conv", "full_attention"]},
    "qwen3_5_text": {"head_dim": 16, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
}
"""Softmax scaled by another number, latent keys wider than values, keys that layers share or that differ in width,
layers that are no attention."""
CHUNKED = {"attention_chunk_size": 12, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 64}
SINKS = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8, "layer_types": PATTERN}
SPARSE = EXPERTS | LATENT | {"index_topk": 4, "index_n_heads": 2, "index_head_dim": 16, "num_key_value_heads": 4}
UNREAD = {
    "doge": ({"keep_window_size": 6}, "layer 0: its mask is not that of causal attention"),
    "gpt_oss": (SINKS, r"layer 0, because of a learned sink in its softmax \(s_aux\)"),
    "glm_moe_dsa": (SPARSE, r"layer 0, because of tokens that it chooses to look at \(indices\)"),
    "llama4_text": (CHUNKED, "layer 0: its mask is not that of causal attention"),
}


def llava_with(kind: str, options: dict) -> Callable:
    """What makes a LLaVA with a language half of `kind`, and its inputs."""
    from transformers import AutoConfig, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    def family():
        config = LlavaConfig(
            text_config=AutoConfig.for_model(kind, **TEXT | {"pad_token_id": 0} | options),
            vision_config=CLIPVisionConfig(**VISION, image_size=12, patch_size=4),
            image_token_index=IMAGE,
        )
        inputs = {"input_ids": prompts((9, 9)), "pixel_values": torch.randn(2, 3, 12, 12)}
        return LlavaForConditionalGeneration(config), inputs

    return family


def paligemma():
    """Its prompt, what `token_type_ids` call 0, is seen in both directions; responses, after it, see what is before."""
    from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig

    config = PaliGemmaConfig(
        text_config=GemmaConfig(**TEXT, head_dim=16),
        vision_config=SiglipVisionConfig(**VISION, image_size=12, patch_size=4),
        image_token_index=IMAGE,
        projection_dim=32,
    )
    ids = prompts((9, 9))
    types = (torch.arange(ids.shape[1]) >= 16).int().expand_as(ids)
    inputs = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 12, 12), "token_type_ids": types}
    return PaliGemmaForConditionalGeneration(config), inputs


def probed(model, inputs, kernel: str, *, training: bool = False):
    """What the probe reads of a pass, with a gradient or without, whose output it must not change."""
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][0, :3] = 0
    model.eval().set_attn_implementation(kernel)
    with torch.set_grad_enabled(training):
        plain = model(**inputs).logits
        probe = AttentionProbe(model, [FULL])
        with probe.capture_regions({"predicting": regions_of(inputs)}) as recorder:
            logits = model(**inputs).logits
        probe.detach()
    mass = recorder.results()[FULL].mass
    assert torch.equal(plain, logits)
    return mass


@pytest.mark.parametrize("training", [False, True], ids=["scored", "trained"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", [*READ, "paligemma"])
def test_agrees_with_the_models_own_attention(kind, kernel, training):
    model, inputs = drawn(paligemma if kind == "paligemma" else llava_with(kind, READ[kind]), by=1.2)
    eager = copy.deepcopy(model).eval()
    eager.set_attn_implementation("eager")
    mass = probed(model, inputs, kernel, training=training)
    with torch.no_grad():
        attentions = eager(**inputs, output_attentions=True).attentions
    own = torch.stack([layer for layer in attentions if layer is not None and layer.ndim == 4], dim=1)
    assert mass.shape[:3] == own.shape[:3] and mass.std() > 0.005
    for row in range(2):
        columns = (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0]
        assert_close(mass[row], own[row][:, :, regions_of(inputs).rows[row]][..., columns])


@pytest.mark.parametrize("kind", UNREAD)
def test_what_can_not_be_read_is_refused_by_name_and_else_by_what_it_does(kind, monkeypatch):
    options, line = UNREAD[kind]
    model, inputs = drawn(llava_with(kind, options))
    with pytest.raises(ValueError, match=f"^the attention probe can't read a language half of type {kind}, because"):
        AttentionProbe(model, [FULL])
    monkeypatch.delitem(families.UNREADABLE, kind)  # as that of a kind that nobody has tried
    with pytest.raises(AssertionError, match=f"^the attention probe can't read {line}"):
        probed(model, inputs, "eager")


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_mask_that_shows_what_follows_is_noticed(kernel):
    model, inputs = drawn(paligemma)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    with pytest.raises(AssertionError, match="layer 0: its mask is not that of causal attention"):
        probed(model, inputs, kernel)


def causal_mask(regions, window: int | None = None) -> torch.Tensor:
    """[row, 1, query, column], written down without `hidden_columns`."""
    column = torch.arange(regions.visible.shape[1])
    gap = column[:, None] - column[None, :]
    return ((gap >= 0) & (gap < (window or 1000)))[None, None] & regions.visible[:, None, None]


def compared(regions, mask, *, written=True, causal=True, window=None, queries: int = 30) -> int:
    """Columns of the mask of layer 5 that were looked at, and found as supposed."""
    longest: dict[tuple[int, bool], int] = {}
    check, key = MaskCheck([regions], longest), torch.zeros(2, 2, 30, 8)
    check.compare(5, torch.zeros(2, 4, queries, 8), key, mask=mask, written=written, causal=causal, window=window)
    check.finish()
    return longest.get((5, mask is None), 0)


@pytest.fixture
def regions():
    ids, mask = prompts((4, 6)), torch.ones(2, 30, dtype=torch.long)
    mask[0, :3] = 0
    return regions_of({"input_ids": ids, "attention_mask": mask})


@pytest.mark.parametrize("window", [None, 7])
def test_masks_that_are_as_supposed(regions, window):
    """Written in booleans and in numbers, for one head and for all, of all queries and of the last ones alone."""
    mask = causal_mask(regions, window)
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    for own in (mask, added, mask.expand(-1, 4, -1, -1)):
        assert compared(regions, own, window=window) == 30
        assert compared(regions, own[:, :, -16:], window=window, queries=16) == 30
    unpadded = replace(regions, visible=torch.ones(2, 30, dtype=torch.bool))
    assert compared(unpadded, causal_mask(unpadded)[:1]) == compared(unpadded, None) == 30
    for unwritten in (None, regions.visible, object()):  # as FlashAttention has it, and FlexAttention
        assert compared(regions, unwritten, written=False, window=window) == 0


def test_a_single_query_sees_all_that_is_there_without_a_mask(regions):
    last = replace(regions, rows=regions.rows[:, :1] * 0 + 29, row_mask=regions.row_mask[:, :1])
    last = replace(last, visible=torch.ones(2, 30, dtype=torch.bool))
    assert compared(last, None, queries=1) == 30
    with pytest.raises(AssertionError, match="layer 5"):  # of two, the first one must not see the second
        compared(replace(last, rows=last.rows - 1), None, causal=False, queries=2)


def test_padding_that_is_not_read_may_look_anywhere(regions):
    mask = causal_mask(regions)
    mask[:, :, 23:] = True
    short = replace(regions, row_mask=regions.rows < 23)
    assert compared(short, mask) == 30
    with pytest.raises(AssertionError, match="layer 5"):
        compared(regions, mask)


@pytest.mark.parametrize("row", [15, 22])
def test_of_a_padded_response_the_first_and_the_last_row_are_looked_at(regions, row):
    mask = causal_mask(regions)
    mask[:, :, row, 11] = False
    with pytest.raises(AssertionError, match="layer 5"):
        compared(replace(regions, row_mask=regions.rows < 23), mask)


@pytest.mark.parametrize(
    ("case", "settings"),
    {
        "padding is seen": ("none", {}),
        "the whole sequence is seen": ("none", {"causal": False}),
        "a window that the layer does not name": ("window", {}),
        "a window of another width": ("window", {"window": 8}),
        "no window where the layer names one": ("causal", {"window": 7}),
        "one column of one head": ("one", {}),
        "scores with a bias": ("bias", {}),
    }.values(),
)
def test_masks_that_are_not(regions, case, settings):
    one = causal_mask(regions).repeat(1, 4, 1, 1)
    one[1, 2, 24, 11] = False
    bias = torch.zeros(2, 4, 30, 30) - 0.5
    masks = {"none": None, "causal": causal_mask(regions), "window": causal_mask(regions, 7), "one": one, "bias": bias}
    with pytest.raises(AssertionError, match=r"^the attention probe can't read layer 5: its mask is not"):
        compared(regions, masks[case], **settings)


def test_a_mask_is_looked_at_where_no_pass_was_longer(regions):
    """Of each layer, and apart where there is none: sdpa goes by the layer there, and not by what a mask says."""
    longest: dict[tuple[int, bool], int] = {}
    wrong, right = torch.ones(2, 1, 30, 30, dtype=torch.bool), causal_mask(regions)

    def passes(layer: int, mask) -> bool:
        check, key = MaskCheck([regions], longest), torch.zeros(2, 2, 30, 8)
        check.compare(layer, torch.zeros(2, 4, 30, 8), key, mask=mask, written=True, causal=False, window=None)
        try:
            check.finish()
        except AssertionError:
            return False
        return True

    assert not passes(0, wrong) and longest == {}  # what is wrong is not taken for looked at
    assert passes(0, right) and longest == {(0, False): 30} and passes(0, wrong)
    assert not passes(1, wrong) and not passes(0, None)
    longest[0, False] = 29
    assert not passes(0, wrong)


def test_keys_of_something_else_than_the_sequence(regions):
    """Pictures by cross-attention: numbers of columns would name other things than tokens."""
    check, query = MaskCheck([regions]), torch.zeros(2, 4, 30, 8)
    options = {"mask": None, "written": True, "causal": True, "window": None}
    check.compare(4, query, query, **options)
    with pytest.raises(AssertionError, match=r"layer 5: it has 18 keys in each of 2 rows, and the batch 30 tokens in"):
        check.compare(5, query, torch.zeros(2, 2, 18, 8), **options)  # whose mask, of none, was looked at


@pytest.mark.parametrize("name", UNREAD_OPTIONS)
def test_what_a_kernel_is_handed(name):
    check_options(0, {name: None, "scaling": 0.5})
    with pytest.raises(AssertionError, match=rf"^the attention probe can't read layer 3, because of .* \({name}\)"):
        check_options(3, {name: torch.ones(4)})
