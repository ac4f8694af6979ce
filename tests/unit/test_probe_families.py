"""The probe on small random models of other families, against their own eager attention."""

from __future__ import annotations

import copy

import pytest
import torch

from atrl.credit.probe import AttentionProbe
from atrl.credit.regions import Regions, packed_regions, visual_token_ids
from tests.unit.attention import FULL, assert_close

IMAGE, SIZE = 110, 120
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "vocab_size": SIZE}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def prompts(images: tuple[int, int]) -> torch.Tensor:
    """Two rows of 30 random tokens; the first `images` of them stand at different places."""
    ids = torch.randint(0, 100, (2, 30))
    ids[0, 6 : 6 + images[0]] = IMAGE
    ids[1, 3 : 3 + images[1]] = IMAGE
    return ids


def qwen3_vl():
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 4, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    config = Qwen3VLConfig(
        text_config=TEXT | {"head_dim": 16, "rope_scaling": rope},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=111,
        vision_start_token_id=112,
        vision_end_token_id=113,
    )
    ids = prompts((4, 8))
    ids[0, 5] = ids[1, 2] = 112
    grid = torch.tensor([[1, 4, 4], [1, 4, 8]])
    patches = torch.randn(int(grid.prod(dim=1).sum()), 3 * 2 * 4 * 4)
    inputs = {"pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": (ids == IMAGE).int()}
    return Qwen3VLForConditionalGeneration(config), {"input_ids": ids} | inputs


def llava_mistral():
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig

    config = LlavaConfig(
        text_config=MistralConfig(**TEXT, sliding_window=12),
        vision_config=CLIPVisionConfig(**VISION, image_size=12, patch_size=4),
        image_token_index=IMAGE,
    )
    return LlavaForConditionalGeneration(config), {
        "input_ids": prompts((9, 9)),
        "pixel_values": torch.randn(2, 3, 12, 12),
    }


def gemma3():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    text = Gemma3TextConfig(**TEXT, head_dim=16, sliding_window=8, layer_types=kinds, query_pre_attn_scalar=20)
    config = Gemma3Config(
        text_config=text,
        vision_config=SiglipVisionConfig(**VISION, image_size=16, patch_size=4),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=112,
        eoi_token_index=113,
    )
    ids = prompts((4, 4))
    inputs = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 16, 16), "token_type_ids": (ids == IMAGE).int()}
    return Gemma3ForConditionalGeneration(config), inputs


def intern_vl():
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

    config = InternVLConfig(
        text_config=Qwen2Config(**TEXT),
        vision_config=InternVLVisionConfig(**VISION, image_size=[16, 16], patch_size=[4, 4]),
        image_token_id=IMAGE,
        image_seq_length=4,
    )
    inputs = {"input_ids": prompts((4, 4)), "pixel_values": torch.randn(2, 3, 16, 16)}
    return InternVLForConditionalGeneration(config), inputs


def llava_gemma2(softcap: float | None = 0.5):
    from transformers import CLIPVisionConfig, Gemma2Config, LlavaConfig, LlavaForConditionalGeneration

    text = {"head_dim": 16, "attn_logit_softcapping": softcap, "query_pre_attn_scalar": 4, "sliding_window": 12}
    config = LlavaConfig(
        text_config=Gemma2Config(**TEXT, **text),
        vision_config=CLIPVisionConfig(**VISION, image_size=12, patch_size=4),
        image_token_index=IMAGE,
    )
    inputs = {"input_ids": prompts((9, 9)), "pixel_values": torch.randn(2, 3, 12, 12)}
    return LlavaForConditionalGeneration(config), inputs


def regions_of(inputs) -> Regions:
    """Rows 15 … 24 as those of a response."""
    mask = inputs["attention_mask"]
    columns = [(row == IMAGE).nonzero()[:, 0] for row in inputs["input_ids"]]
    width = max(map(len, columns))
    rows = torch.arange(15, 25).expand(2, -1)
    return Regions(
        source=torch.arange(2),
        start=torch.zeros(2, dtype=torch.long),
        visible=mask.bool(),
        rows=rows,
        row_mask=torch.ones_like(rows, dtype=torch.bool),
        tokens=rows + 1,
        columns=torch.stack([torch.nn.functional.pad(c, (0, width - len(c))) for c in columns]),
        column_mask=torch.stack([torch.arange(width) < len(c) for c in columns]),
    )


OTHERS = [qwen3_vl, llava_mistral, gemma3, intern_vl]


def drawn(family, by: float = 2):
    """A model whose attention is not nearly even, which the usual initialisation makes it, and inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = family()
        for parameter in model.parameters():
            parameter.data.mul_(by)
    return model, inputs


@pytest.mark.parametrize("training", [False, True], ids=["scored", "trained"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", OTHERS)
def test_agrees_with_the_models_own_attention(family, padding, training):
    """One row of the batch is padded. With gradients and without."""
    model, inputs = drawn(family)
    mask = torch.ones_like(inputs["input_ids"])
    if padding == "left":
        mask[0, :3] = 0
    else:
        mask[0, -3:] = 0
    inputs["attention_mask"] = mask
    model = model.eval()
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    regions = regions_of(inputs)
    assert visual_token_ids(model.config)[0] == IMAGE
    probe = AttentionProbe(model, [FULL])
    with torch.set_grad_enabled(training):
        attention = torch.stack(eager(**inputs, output_attentions=True).attentions, dim=1)
        with probe.capture_regions({"predicting": regions}) as recorder:
            logits = model(**inputs).logits
        probe.detach()
        assert torch.equal(logits, model(**inputs).logits)
    mass = recorder.results()[FULL].mass
    assert mass.shape[1] == 3 and mass.std() > 0.005
    for row in range(2):
        columns = (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0]
        assert_close(mass[row, ..., : len(columns)], attention[row][:, :, regions.rows[row]][..., columns])


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("family", OTHERS)
def test_gradients_are_those_without_the_probe_where_layers_run_again(family, kernel):
    """Bit for bit; and what is read there is the model's own attention."""
    model, inputs = drawn(family)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][0, :3] = 0
    eager = copy.deepcopy(model).eval()
    eager.set_attn_implementation("eager")
    model.set_attn_implementation(kernel)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    regions = regions_of(inputs)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**inputs, use_cache=False).logits.square().sum().backward()
        return {name: tensor.grad.clone() for name, tensor in model.named_parameters() if tensor.grad is not None}

    plain = gradients()
    probe = AttentionProbe(model, [FULL])
    with probe.capture_regions({"predicting": regions}) as recorder:
        probed = gradients()
    probe.detach()
    assert plain.keys() == probed.keys() and any("vision" in name or "visual" in name for name in plain)
    assert all(torch.equal(plain[name], probed[name]) for name in plain)
    with torch.no_grad():
        attention = torch.stack(eager(**inputs, output_attentions=True).attentions, dim=1)
    mass = recorder.results()[FULL].mass
    for row in range(2):
        columns = (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0]
        assert_close(mass[row, ..., : len(columns)], attention[row][:, :, regions.rows[row]][..., columns])


@pytest.mark.parametrize("training", [False, True], ids=["scored", "trained"])
@pytest.mark.parametrize("family", OTHERS)
def test_rows_that_hold_two_sequences_are_read_apart(family, training):
    """Positions that begin anew tell transformers that a row is packed; none of a neighbour's attention is read."""
    model, inputs = drawn(family)
    model = model.eval()
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    length = inputs["input_ids"].shape[1]
    packed = dict(inputs)
    for name in ("input_ids", "token_type_ids", "mm_token_type_ids"):
        if name in packed:
            packed[name] = packed[name].reshape(1, -1)
    positions = torch.arange(length).repeat(2)[None]
    packed["position_ids"] = positions.expand(4, 1, -1) if family is qwen3_vl else positions
    segments = torch.arange(1, 3).repeat_interleave(length)[None]
    is_response = (positions >= 20) & (positions < length)
    regions = packed_regions(packed["input_ids"], segments, is_response, (IMAGE,))
    probe = AttentionProbe(model, [FULL])
    with torch.set_grad_enabled(training):
        attention = torch.stack(eager(**packed, output_attentions=True, use_cache=False).attentions, dim=1)[0]
        with probe.capture_regions({"predicting": regions}) as recorder:
            model(**packed, use_cache=False)
        probe.detach()
    assert attention[..., length:, :length].abs().max() == 0  # the second sequence sees nothing of the first
    mass = recorder.results()[FULL].mass
    for number in range(2):
        columns = regions.columns[number][regions.column_mask[number]]
        assert (columns >= number * length).all() and len(columns)
        assert_close(mass[number, ..., : len(columns)], attention[:, :, regions.rows[number]][..., columns])


@pytest.mark.parametrize(("kernel", "capped"), [("eager", True), ("sdpa", False)])
def test_caps_of_scores_are_read_where_the_kernel_has_them(kernel, capped):
    """transformers gives sdpa the cap of Gemma 2's scores, and it does nothing with it."""
    model, inputs = drawn(llava_gemma2)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    expected = []
    for softcap in (0.5, None):
        other, _ = drawn(lambda cap=softcap: llava_gemma2(cap))
        other.eval().set_attn_implementation("eager")
        with torch.no_grad():
            expected.append(torch.stack(other(**inputs, output_attentions=True).attentions, dim=1))
    model.eval().set_attn_implementation(kernel)
    regions = regions_of(inputs)
    probe = AttentionProbe(model, [FULL])
    with torch.no_grad(), probe.capture_regions({"predicting": regions}) as recorder:
        model(**inputs)
    probe.detach()
    mass, found = recorder.results()[FULL].mass, []
    for attention in expected:
        gaps = []
        for row in range(2):
            columns = (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0]
            gaps.append((mass[row] - attention[row][:, :, regions.rows[row]][..., columns]).abs().max().item())
        found.append(max(gaps))
    own, other = found if capped else found[::-1]
    assert own < 1e-5 and other > 1e-3
