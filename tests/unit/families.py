"""Small random checkpoints of several model families: the stock classes, published chat templates cut to the bone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

QWEN = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PICTURE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}ASSISTANT: "
    "{{ message['content'][0]['text'] }}</s>{% else %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "max_position_embeddings": 512}  # vLLM's CPU kernels take heads of 32 and more
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
QWEN_TOKENS = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
PIXELS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def tokenizer_of(special: tuple[str, ...], *, adds_bos: bool = False, normalizer=None, **roles: Any):
    """A byte-level BPE tokenizer that learned a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AddedToken, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(["What is in the picture? user model assistant USER: ASSISTANT:\n\n"] * 20, trainer)
    if normalizer is not None:
        backend.normalizer = normalizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special], special_tokens=True)
    if adds_bos:
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        single = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
        tokenizer.backend_tokenizer.post_processor = single
    return tokenizer


def _save(model, processor, folder: Path) -> Path:
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # the usual initialisation says nearly the same of every token
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.1 if parameter.ndim > 1 else 0.02)
        if parameter.ndim == 1:
            parameter.data += 1
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _qwen_parts(template: str, picture: str, patch: int, **roles: Any):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    size = {"shortest_edge": 28**2, "longest_edge": 56**2}
    roles = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | roles
    return {
        "tokenizer": tokenizer_of(QWEN_TOKENS, **roles),
        "image_processor": Qwen2VLImageProcessor(size=size, patch_size=patch, **PIXELS),
        "video_processor": Qwen2VLVideoProcessor(size=size, patch_size=patch, **PIXELS),
        "chat_template": template.replace("PICTURE", picture),
    }


def _qwen_ids(tokenizer) -> dict[str, int]:
    named = {
        "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
    }  # fmt: skip
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}


def _qwen2(folder: Path, kind: str, **roles: Any) -> Path:
    import transformers

    parts = _qwen_parts(QWEN, "<|vision_start|><|image_pad|><|vision_end|>", 14, **roles)
    tokenizer = parts["tokenizer"]
    vision = {"depth": 2, "patch_size": 14, "num_heads": 2, "hidden_size": 32}
    if kind == "Qwen2_5_VL":
        vision |= {"intermediate_size": 64, "out_hidden_size": 64, "fullatt_block_indexes": [1], "window_size": 56}
    else:
        vision |= {"embed_dim": 32, "hidden_size": 64}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    config = getattr(transformers, f"{kind}Config")(
        text_config=TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config=vision,
        **_qwen_ids(tokenizer),
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return _save(model, getattr(transformers, f"{kind}Processor")(**parts), folder)


def qwen2_vl(folder: Path, **roles: Any) -> Path:
    return _qwen2(folder, "Qwen2VL", **roles)


def qwen2_5_vl(folder: Path, **roles: Any) -> Path:
    return _qwen2(folder, "Qwen2_5_VL", **roles)


def qwen3_vl(folder: Path, **roles: Any) -> Path:
    """Its image processor is Qwen2-VL's, its vision tower feeds inner layers of the language half too."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    parts = _qwen_parts(QWEN, "<|vision_start|><|image_pad|><|vision_end|>", 14, **roles)
    parts["video_processor"] = Qwen3VLVideoProcessor(patch_size=14, **PIXELS)
    tokenizer = parts["tokenizer"]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"patch_size": 14, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    config = Qwen3VLConfig(
        text_config=TEXT | {"vocab_size": len(tokenizer), "head_dim": 32, "rope_parameters": rope},
        vision_config=vision,
        **_qwen_ids(tokenizer),
    )
    return _save(Qwen3VLForConditionalGeneration(config), Qwen3VLProcessor(**parts), folder)


def llava(folder: Path, **roles: Any) -> Path:
    """LLaVA 1.5: no special token opens or closes a turn but the end of the sequence, and the tokenizer adds BOS."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = tokenizer_of(
        ("<image>",), adds_bos=True, **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | roles
    )
    size = {"height": 12, "width": 12}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 12}, crop_size=size, **PIXELS),
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )
    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT, vocab_size=len(tokenizer)),
        vision_config=CLIPVisionConfig(**VISION, image_size=12, patch_size=4),
        image_token_index=processor.image_token_id,
    )
    return _save(LlavaForConditionalGeneration(config), processor, folder)


def gemma3(folder: Path, **roles: Any) -> Path:
    """A picture's mark in the text is not the token that takes its features; turns end with a token that is no EOS."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )

    roles = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"} | roles
    pictures = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = tokenizer_of(
        ("<start_of_turn>", "<end_of_turn>"), adds_bos=True, extra_special_tokens=pictures, **roles
    )
    tokenizer.add_tokens(["\n" * count for count in range(1, 5)])  # as the published one, which vLLM counts on
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 16, "width": 16}, **PIXELS),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=GEMMA,
    )
    text = Gemma3TextConfig(
        **TEXT, vocab_size=len(tokenizer), head_dim=32, sliding_window=16, query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    config = Gemma3Config(
        text_config=text,
        vision_config=SiglipVisionConfig(**VISION, image_size=16, patch_size=4),
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    return _save(Gemma3ForConditionalGeneration(config), processor, folder)


def internvl(folder: Path, **roles: Any) -> Path:
    """A picture becomes one or more tiles of the same size."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        InternVLVisionConfig,
        Qwen2Config,
    )

    roles = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | roles
    pictures = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = tokenizer_of(("<|im_start|>",), extra_special_tokens=pictures | {"video_token": "<video>"}, **roles)
    size = {"height": 16, "width": 16}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=3, **PIXELS),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size, **PIXELS),
        image_seq_length=4,
        chat_template=QWEN.replace("PICTURE", "<IMG_CONTEXT>\n"),
    )
    config = InternVLConfig(
        text_config=Qwen2Config(**TEXT, vocab_size=len(tokenizer)),
        vision_config=InternVLVisionConfig(**VISION, image_size=[16, 16], patch_size=[4, 4]),
        image_token_id=processor.image_token_id,
        image_seq_length=4,
    )
    return _save(InternVLForConditionalGeneration(config), processor, folder)


FAMILIES: dict[str, Callable[..., Path]] = {
    maker.__name__: maker for maker in (qwen2_vl, qwen2_5_vl, qwen3_vl, llava, gemma3, internvl)
}
