"""Problems with videos, and a tiny Qwen3-VL, whose processor writes times into the text."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from atrl.types import Problem, Video


def clip(count: int, size: tuple[int, int] = (112, 112), fps: float = 2.0, *, start: int = 0) -> Video:
    """`count` different frames: a gradient that turns."""
    turns = [Image.linear_gradient("L").rotate(17 * (start + index)) for index in range(count)]
    return Video(tuple(turn.resize(size).convert("RGB") for turn in turns), fps)


def problems() -> dict[str, Problem]:
    """A video alone, none at all, a picture, and two videos of different shapes around a picture."""
    tall = Image.radial_gradient("L").resize((60, 180)).convert("RGB")
    return {
        "video": Problem("video", "<video>What moves?", "x", videos=(clip(8),)),
        "none": Problem("none", f"What is {' + '.join('3' * 30)}?", "90"),
        "image": Problem("image", "See <image> there", "x", images=(tall,)),
        "mixed": Problem(
            "mixed", "First <video> then <image> and <video>?", "x",
            images=(tall,), videos=(clip(5, (60, 60), 0.5), clip(6, (140, 56), 3.0, start=9)),
        ),
    }  # fmt: skip


def qwen3_vl(mean: Sequence[float] = (0.5, 0.5, 0.5)):
    """Processor and model of the Qwen3-VL family, random and tiny."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    from atrl.models.scratch import CHAT_TEMPLATE, build_tokenizer

    tokenizer = build_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    scale = {"image_mean": list(mean), "image_std": [0.5] * 3}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=16, size={"shortest_edge": 4096, "longest_edge": 4096}, **scale
        ),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(
            size={"shortest_edge": 4 * 4096, "longest_edge": 8 * 4096}, cap_pixels_per_frame=False, **scale
        ),
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True
            },
            "initializer_range": 0.08, "eos_token_id": token("<|im_end|>"), "pad_token_id": token("<|endoftext|>"),
            "bos_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "patch_size": 16, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64,
            "initializer_range": 0.08,
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(config).float().eval()
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return processor, model
