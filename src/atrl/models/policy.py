"""One forward pass of a vision-language model over a batch of experience."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from atrl.models.positions import position_ids
from atrl.types import Experience

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


_GRIDS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def response_logits(model: PreTrainedModel, batch: Experience) -> Float[Tensor, "rollout response vocabulary"]:
    """The logits that predict each response token: row t is computed from everything before token t.

    Only the rows from the last prompt token to the last-but-one response token reach the vocabulary head.
    """
    output = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
        logits_to_keep=batch.response_length + 1,
        **picture_inputs(model, batch.input_ids, batch.attention_mask, batch.pixels),
    )
    return output.logits[:, :-1]


def picture_inputs(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "rollout tokens"],
    attention_mask: Int[Tensor, "rollout tokens"],
    pixels: Sequence[dict[str, Tensor]],
) -> dict[str, Any]:
    """Keyword arguments that give `model` the pictures and videos of every row, and where its tokens stand.

    A picture or video is encoded once, however many rows share its tensors (the responses of a group do); gradients of
    all those rows flow into that one encoding.
    """
    found = {name: [entry[name] for entry in pixels if name in entry] for name in _GRIDS}
    grids = {name: torch.cat(rows) for name, rows in found.items() if rows}
    encoded = {}
    if "image_grid_thw" in grids:
        encoded["image"] = _encoded(model.get_image_features, pixels, "pixel_values", "image_grid_thw")
    if "video_grid_thw" in grids:
        encoded["video"] = _encoded(model.get_video_features, pixels, "pixel_values_videos", "video_grid_thw")
    positions = {"position_ids": position_ids(model, input_ids, attention_mask, grids)}
    return positions | ({"mm_encoder_outputs": encoded} if encoded else {})


def _encoded(encode: Callable[..., Any], pixels: Sequence[dict[str, Tensor]], values: str, grid: str) -> Any:
    """The vision tower's output for all rows, in order, each different picture or video having gone through it once."""
    rows = [entry for entry in pixels if values in entry]
    unique = {id(entry): entry for entry in rows}
    output = encode(
        torch.cat([entry[values] for entry in unique.values()]),
        torch.cat([entry[grid] for entry in unique.values()]),
        return_dict=True,
    )
    counts = [len(entry[grid]) for entry in unique.values()]

    def for_all_rows(features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        each = iter(features)
        by_entry = {key: [next(each) for _ in range(count)] for key, count in zip(unique, counts, strict=True)}
        return tuple(feature for entry in rows for feature in by_entry[id(entry)])

    output.pooler_output = for_all_rows(output.pooler_output)
    if getattr(output, "deepstack_features", None) is not None:  # Qwen3-VL: one set of features a layer
        output.deepstack_features = [for_all_rows(features) for features in output.deepstack_features]
    return output


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout, no gradient checkpointing), and then each module's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
