"""One forward pass of a vision-language model over a batch of experience."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from atrl.sharding import is_sharded
from atrl.types import Experience

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def response_logits(model: PreTrainedModel, batch: Experience) -> Float[Tensor, "rollout response vocabulary"]:
    """The logits that predict each response token: row t is computed from everything before token t.

    Only the rows from the last prompt token to the last-but-one response token reach the vocabulary head.
    """
    # Before the rest, as where there are pictures: ranks must run a sharded model's blocks in the same order.
    idle = is_sharded(model) and batch.pictures_somewhere and not any(batch.pixels)
    nothing = idle_vision(model) if idle else None
    output = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
        logits_to_keep=batch.response_length + 1,
        **picture_inputs(model, batch.input_ids, batch.pixels),
    )
    logits = output.logits[:, :-1]
    return logits if nothing is None else logits + nothing


def idle_vision(model: PreTrainedModel) -> Float[Tensor, ""]:
    """0, by way of the vision tower, with a gradient of 0 for all of its parameters.

    A rank without a picture runs the tower on a black one, because the others wait for its part of the parameters, and
    of the gradients.
    """
    vision = model.config.vision_config
    side = vision.spatial_merge_size
    width = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.zeros(side * side, width, device=model.device)
    grid = torch.tensor([[1, side, side]], device=model.device)
    encoded = model.get_image_features(pixels, grid, return_dict=True)
    return 0.0 * torch.cat(tuple(encoded.pooler_output)).sum().float()


def picture_inputs(
    model: PreTrainedModel, input_ids: Int[Tensor, "rollout tokens"], pixels: Sequence[dict[str, Tensor]]
) -> dict[str, Any]:
    """Keyword arguments that give `model` the pictures of every row.

    A picture is encoded once, however many rows share its tensors (the responses of a group do); gradients of all
    those rows flow into that one encoding.
    """
    unique: dict[int, dict[str, Tensor]] = {id(entry): entry for entry in pixels if entry}
    if not unique:
        return {}
    encoded = model.get_image_features(
        torch.cat([entry["pixel_values"] for entry in unique.values()]),
        torch.cat([entry["image_grid_thw"] for entry in unique.values()]),
        return_dict=True,
    )
    counts = [len(entry["image_grid_thw"]) for entry in unique.values()]
    pooled = iter(encoded.pooler_output)
    by_entry = {key: [next(pooled) for _ in range(count)] for key, count in zip(unique, counts, strict=True)}
    rows = [entry for entry in pixels if entry]
    # Not in transformers' own type: FSDP would find the features in it, take them for the model's input, and divide
    # its parameters again, and their gradients, once more than on a rank without a picture.
    features = SimpleNamespace(pooler_output=tuple(feature for entry in rows for feature in by_entry[id(entry)]))
    return {
        "mm_encoder_outputs": {"image": features},
        "image_grid_thw": torch.cat([entry["image_grid_thw"] for entry in rows]),
        "mm_token_type_ids": (input_ids == model.config.image_token_id).int(),
    }


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
