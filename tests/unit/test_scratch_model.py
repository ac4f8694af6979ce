"""The tiny checkpoint made from nothing: tokenizer, weights and folder."""

from __future__ import annotations

import json
import unicodedata

import pytest
import torch

from atrl.models import scratch
from atrl.models.scratch import SPECIAL_TOKENS

HARD_TEXTS = [
    r"\frac{1}{2}\sqrt{3} + \angle ACB = 90^\circ, \boxed{(2,3)}",
    "midpoint 😀 👩‍👩‍👧 🏳️‍🌈",
    "座標は(3,4)です。한국어 العربية हिन्दी",
    "tab\tnull\x00bell\x07 return\r\n\n\n  spaces   end ",
    "café, Å and ﬁ",
    "e\u0301 A\u030a \u2126",  # combining accents and the ohm sign, which NFC composes or replaces
    "\u200b\u202e\ufeff\U0010ffff",
    "<image> <|im_start |> < |endoftext|>",
    "",
]


@pytest.fixture(scope="module")
def tokenizer(processor):
    return processor.tokenizer


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_every_text_survives_up_to_nfc(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_every_digit_is_a_token_of_its_own(tokenizer):
    pieces = [tokenizer.decode([token]) for token in tokenizer("A(12,34) 2026 5 x67")["input_ids"]]
    assert [piece for piece in pieces if any(character.isdigit() for character in piece)] == list("12342026567")
    merged = [token for token in tokenizer.get_vocab() if len(token) > 1 and any(c.isdigit() for c in token)]
    assert merged == []


def test_special_tokens_are_whole_and_at_the_end(tokenizer):
    for token in SPECIAL_TOKENS:
        assert len(tokenizer(token)["input_ids"]) == 1
    ids = sorted(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    assert ids == list(range(len(tokenizer) - len(SPECIAL_TOKENS), len(tokenizer)))
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


def test_the_corpus_never_makes_a_special_token(tokenizer):
    texts = dict.fromkeys(scratch._corpus())
    special = set(tokenizer.all_special_ids)
    assert len(texts) > 1000
    for text, ids in zip(texts, tokenizer(list(texts))["input_ids"], strict=True):
        assert not special & set(ids), text
        assert tokenizer.decode(ids) == text


def test_the_folder_loads_with_the_auto_classes(checkpoint, policy, processor):
    """What `policy` and `processor` are, and that nothing but plain files is needed."""
    assert type(policy).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in checkpoint.iterdir()}
    assert not list(checkpoint.glob("*.py")) and "auto_map" not in json.loads((checkpoint / "config.json").read_text())
    for name in ("image", "video", "vision_start", "vision_end"):
        token = "<|" + {"image": "image_pad", "video": "video_pad"}.get(name, name) + "|>"
        assert getattr(policy.config, f"{name}_token_id") == processor.tokenizer.convert_tokens_to_ids(token)
    assert policy.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    assert policy.generation_config.pad_token_id == processor.tokenizer.pad_token_id


def test_the_weights_survive_the_folder(policy, tokenizer):
    built = scratch.build_model(tokenizer, seed=3).state_dict()
    loaded = policy.state_dict()
    assert built.keys() == loaded.keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in built.items())


def test_size(policy, tokenizer):
    assert 800_000 <= sum(parameter.numel() for parameter in policy.parameters()) <= 2_000_000
    assert all(parameter.dtype == torch.float32 for parameter in policy.parameters())
    assert policy.lm_head.weight is policy.get_input_embeddings().weight
    assert policy.lm_head.weight.shape[0] == len(tokenizer)


def test_the_weights_are_a_function_of_the_seed(tokenizer):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = scratch.build_model(tokenizer, seed=1).state_dict()
    assert torch.equal(state, torch.get_rng_state()), "the global random state was used"
    torch.manual_seed(12)
    again, other = (scratch.build_model(tokenizer, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    drawn = [name for name, tensor in first.items() if tensor.ndim > 1]
    assert drawn and not any(torch.equal(first[name], other[name]) for name in drawn)


def test_initialisation_is_the_one_that_learns(policy):
    """A normal of standard deviation 0.08 where transformers' default is 0.02, in both halves of the model."""
    for layer in (policy.model.language_model.layers[0].mlp.up_proj, policy.model.visual.blocks[0].attn.qkv):
        assert layer.weight.std().item() == pytest.approx(0.08, rel=0.03)
    assert policy.config.get_text_config().rope_parameters["rope_theta"] == 10.0


def test_white_is_zero_in_every_channel(processor):
    """On a white ground only what is drawn reaches the patch embedding; black is (0 - 1)/0.25 = -4."""
    from PIL import Image

    for colour, value in (("white", 0.0), ("black", -4.0)):
        pixels = processor.image_processor(images=[Image.new("RGB", (112, 112), colour)], return_tensors="pt")[
            "pixel_values"
        ]
        assert pixels.shape[0] == 64 and (pixels == value).all()
