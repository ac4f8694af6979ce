"""One forward pass of a vision-language model over a batch of experience."""

from __future__ import annotations

import inspect
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
    channels = getattr(vision, "in_channels", getattr(vision, "num_channels", 3))
    side = getattr(vision, "spatial_merge_size", None)
    if side is None:  # pictures, or tiles of them, of one size
        size = vision.image_size if isinstance(vision.image_size, (list, tuple)) else [vision.image_size] * 2
        inputs = {"pixel_values": torch.zeros(1, channels, *size, device=model.device)}
    else:  # patches, for which a grid says where they lie
        patch = torch.zeros(side * side, channels * vision.temporal_patch_size * vision.patch_size**2)
        grid = torch.tensor([[1, side, side]], device=model.device)
        inputs = {"pixel_values": patch.to(model.device), "image_grid_thw": grid}
    encoded = model.get_image_features(**inputs, return_dict=True)
    outputs = [*encoded.pooler_output, *(part for layer in _deepest(encoded) for part in layer)]
    return 0.0 * sum(part.float().sum() for part in outputs)


def picture_inputs(
    model: PreTrainedModel, input_ids: Int[Tensor, "rollout tokens"], pixels: Sequence[dict[str, Tensor]]
) -> dict[str, Any]:
    """Keyword arguments that give `model` the pictures of every row.

    A picture is encoded once, however many rows share its tensors (the responses of a group do); gradients of all
    those rows flow into that one encoding.
    """
    rows = [entry for entry in pixels if entry]
    unique: dict[int, dict[str, Tensor]] = {id(entry): entry for entry in rows}
    if not unique:
        return {}
    tensors = {name: torch.cat([entry[name] for entry in unique.values()]) for name in rows[0]}
    encoded = model.get_image_features(tensors.pop("pixel_values"), **tensors, return_dict=True)
    counts = [_encodings(entry) for entry in unique.values()]

    def dealt(features: Sequence[Tensor]) -> list[Tensor]:
        found = iter(features)
        by_entry = {key: [next(found) for _ in range(count)] for key, count in zip(unique, counts, strict=True)}
        return [feature for entry in rows for feature in by_entry[id(entry)]]

    own, deeper = encoded.pooler_output, _deepest(encoded)
    # Not in transformers' own type: FSDP would find the features in it, take them for the model's input, and divide
    # its parameters again, and their gradients, once more than on a rank without a picture.
    dealt_out = SimpleNamespace(
        pooler_output=torch.stack(dealt(own)) if isinstance(own, Tensor) else tuple(dealt(own)),
        deepstack_features=[tuple(dealt(layer)) for layer in deeper] or None,
    )
    grid = {} if "image_grid_thw" not in tensors else {"image_grid_thw": torch.cat([e["image_grid_thw"] for e in rows])}
    return {"mm_encoder_outputs": {"image": dealt_out}} | grid | token_kinds(model, input_ids)


def token_kinds(
    model: PreTrainedModel, input_ids: Int[Tensor, "rollout tokens"]
) -> dict[str, Int[Tensor, "rollout tokens"]]:
    """1 where a picture's features go, under the name that `model` asks for it by, if it does.

    Qwen needs it for positions, Gemma 3 for its mask: the tokens of a picture see each other in both directions.
    """
    asked = inspect.signature(model.forward).parameters
    kinds = (input_ids == model.config.image_token_id).int()
    return {name: kinds for name in ("mm_token_type_ids", "token_type_ids") if name in asked}


def _deepest(encoded: Any) -> Sequence[Sequence[Tensor]]:
    """The features that Qwen3-VL's inner layers take as well; of other models none."""
    return getattr(encoded, "deepstack_features", None) or ()


def _encodings(entry: dict[str, Tensor]) -> int:
    """How many tensors of features a prompt's pictures become: one a picture of a grid, else one a tile."""
    return len(entry["image_grid_thw"] if "image_grid_thw" in entry else entry["pixel_values"])


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
