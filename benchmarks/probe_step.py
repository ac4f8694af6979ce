"""What reading attention adds to a training pass at a published model's shape, with random weights: for a GPU.

    python benchmarks/probe_step.py [--shape 3b] [--images 1024] [--tokens 1024] [--rows 1] [--heads 8]
                                    [--checkpointing]

Forward and backward pass of the language half alone, in bfloat16, alternating without and with the probe as
`credit=atrl` asks for it: of all heads, or of as many as `credit.heads=auto` leaves. `--shape tiny` runs anywhere. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

SHAPES = {  # layers, width, heads, key-value heads, feed-forward width
    "tiny": (2, 64, 4, 2, 128),
    "3b": (36, 2048, 16, 2, 11008),
    "7b": (28, 3584, 28, 4, 18944),
}
PROMPT_TEXT = 128


def main() -> None:
    """Measure and print."""
    import torch

    arguments = parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(arguments.shape, device, arguments.checkpointing)
    batch, embeddings = inputs(model, arguments)
    from atrl.credit.atrl import AtrlCredit
    from atrl.credit.probe import AttentionProbe
    from atrl.credit.regions import padded_regions

    heads = spread(arguments.heads, *SHAPES[arguments.shape][:3:2]) if arguments.heads else None
    probe = AttentionProbe(model, AtrlCredit(heads=heads).requests)
    regions = {"predicting": padded_regions(batch, (model.config.image_token_id,))}

    def one_pass(with_probe: bool) -> float:
        model.zero_grad()
        _wait(device)
        start = time.perf_counter()
        if with_probe:
            with probe.capture_regions(regions) as recorder:
                hidden = model.model.language_model(inputs_embeds=embeddings).last_hidden_state
            recorder.results()
        else:
            hidden = model.model.language_model(inputs_embeds=embeddings).last_hidden_state
        hidden.float().square().mean().backward()
        _wait(device)
        return time.perf_counter() - start

    for _ in range(3):
        one_pass(False), one_pass(True)
    pairs = [(one_pass(False), one_pass(True)) for _ in range(arguments.rounds)]
    shares = sorted(with_probe / plain - 1 for plain, with_probe in pairs)
    peaks = {name: peak_bytes(one_pass, flag, device) for name, flag in (("plain", False), ("probe", True))}
    print(
        json.dumps(
            {
                "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                "shape": arguments.shape,
                "rows": arguments.rows,
                "heads_read": len(heads) if heads else "all",
                "image_tokens": arguments.images,
                "response_tokens": arguments.tokens,
                "pass_seconds": statistics.median(plain for plain, _ in pairs),
                "pass_overhead_fraction": statistics.median(shares),
                "pass_overhead_range": [shares[0], shares[-1]],
                "peak_bytes": peaks,
            }
        )
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="3b")
    parser.add_argument("--images", type=int, default=1024, help="image tokens of each row (default 1024)")
    parser.add_argument("--tokens", type=int, default=1024, help="response tokens of each row (default 1024)")
    parser.add_argument("--rows", type=int, default=1, help="rollouts in the micro-batch (default 1)")
    parser.add_argument("--heads", type=int, help="heads that are read (default all), of as many layers as possible")
    parser.add_argument("--rounds", type=int, default=20, help="pairs of passes (default 20)")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    return parser.parse_args()


def spread(count: int, layers: int, heads: int) -> tuple[tuple[int, int], ...]:
    """(layer, head) of `count` heads, in as many layers as there are for them: reading is dearest so.

    Raises:
        ValueError: if the model has fewer.
    """
    if count > layers * heads:
        raise ValueError(
            f"--heads must be at most {layers * heads}, the shape's {layers} layers of {heads}, got {count}"
        )
    step = max(1, layers // count)
    return tuple((number * step % layers, number * step // layers) for number in range(count))


def build(shape: str, device: str, checkpointing: bool):
    """Qwen2.5-VL with a language half of this shape, random weights and next to no vision tower or vocabulary."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    layers, width, heads, kv_heads, hidden = SHAPES[shape]
    section = width // heads // 2
    rope = {"rope_type": "default", "rope_theta": 1e6}
    rope["mrope_section"] = [section - 2 * (3 * section // 8), 3 * section // 8, 3 * section // 8]
    text = {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers, "rope_parameters": rope}
    text |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": 200}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": width}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=150, video_token_id=151)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def inputs(model, arguments: argparse.Namespace):
    """A batch as the probe wants it, and the embeddings that stand for it."""
    import torch

    from atrl.types import Experience

    length = PROMPT_TEXT + arguments.images + arguments.tokens
    ids = torch.randint(0, 100, (arguments.rows, length), device=model.device)
    ids[:, 8 : 8 + arguments.images] = model.config.image_token_id
    mask = torch.ones_like(ids)
    logprobs = torch.zeros(arguments.rows, arguments.tokens, device=model.device)
    batch = Experience(ids, mask, mask[:, -arguments.tokens :].bool(), [{}] * arguments.rows, logprobs)
    width = model.config.get_text_config().hidden_size
    return batch, torch.randn(arguments.rows, length, width, dtype=torch.bfloat16, device=model.device)


def peak_bytes(one_pass, with_probe: bool, device: str) -> int | None:
    """The most that torch held on the GPU during a pass; None without one."""
    import torch

    if device == "cpu":
        return None
    torch.cuda.reset_peak_memory_stats()
    one_pass(with_probe)
    return torch.cuda.max_memory_allocated()


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
