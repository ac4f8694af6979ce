"""A tiny Qwen2.5-VL from nothing: tokenizer, processor and randomly initialised weights.

The classes are transformers' own; only the sizes differ from the published checkpoints, so that whatever runs on
this model runs on those. Everything is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin, Qwen2_5_VLForConditionalGeneration

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION_TOKENS)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAYERS, HEADS = 3, 4
"""Of the language half."""
POSITIONS = 2048
"""Tokens of prompt and response together."""
_GENERAL_TEXT = (
    "What shape is in the picture? What color is the shape? Which colour does the image contain?",
    "The shape is a circle, a rectangle, a triangle. The color is red, green, blue, black, gray, teal, brown, yellow.",
    "As shown in the figure, in triangle ABC the angle is equal to \\frac{1}{2} of the side, find the value of x.",
    "If AB = 5 and \\angle ACB = 90^\\circ, then the length is \\sqrt{3} and the area \\pi r^2. \\text{cm}",
    "user assistant system choose the correct option A, B, C, D and put the final answer in \\boxed{}.",
)


def build_tokenizer(vocabulary_size: int = 640) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer: every text survives up to Unicode's NFC form, every digit is a token of its own."""
    from tokenizers import pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    backend = Qwen2Tokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_corpus(), trainer)
    learned = backend.to_str()
    return _qwen_tokenizer(learned)


def _qwen_tokenizer(learned: str) -> PreTrainedTokenizerBase:
    import json

    from transformers import Qwen2Tokenizer

    model = json.loads(learned)["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]  # transformers' annotation has them as text alone
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _corpus() -> Iterator[str]:
    from atrl.data.geometry import GeometryProblems

    for problem in GeometryProblems(train_size=2000).load("train"):
        yield problem.question.removeprefix("<image>")
        yield problem.target or ""
    for _ in range(200):
        yield from _GENERAL_TEXT


def build_processor(tokenizer: PreTrainedTokenizerBase | None = None, image_pixels: int = 112) -> ProcessorMixin:
    """The stock Qwen2.5-VL processor; every picture is scaled to about `image_pixels` x `image_pixels`.

    White is 0: on a white ground only what is drawn reaches the patch embedding, without which a model of this size
    does not learn to read within a thousand steps.

    Args:
        tokenizer: with a chat template of its own; None is the tiny model's.
        image_pixels: along a side.
    """
    from transformers import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    tokenizer = build_tokenizer() if tokenizer is None else tokenizer
    scale = {"image_mean": [1.0, 1.0, 1.0], "image_std": [0.25, 0.25, 0.25]}
    size = {"shortest_edge": image_pixels**2, "longest_edge": image_pixels**2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **scale),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size, **scale),
        chat_template=tokenizer.chat_template,
    )


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """About a million float32 parameters, drawn from `seed` without touching the global random state.

    `initializer_range` and `rope_theta` differ from the published models' because with those a model of this size
    learns the wording but never to read the picture.
    """
    import torch
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    token = tokenizer.convert_tokens_to_ids
    config = AutoConfig.for_model(
        "qwen2_5_vl",
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": 2,
            "max_position_embeddings": POSITIONS,
            "initializer_range": 0.08,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 176,
            "num_heads": 4,
            "out_hidden_size": 128,
            "window_size": 112,
            "fullatt_block_indexes": [0, 1],
            "initializer_range": 0.08,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
        initializer_range=0.08,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return model.float()


def build(folder: Path, *, seed: int = 0) -> Path:
    """Write a complete, untrained checkpoint (weights as safetensors, tokenizer, processor) into `folder`."""
    processor = build_processor()
    model = build_model(processor.tokenizer, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
