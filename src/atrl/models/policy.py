"""One forward pass of a vision-language model over a batch of experience."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from atrl.types import Experience

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def response_logits(model: PreTrainedModel, batch: Experience) -> Float[Tensor, "rollout response vocabulary"]:
    """The logits that predict each response token: row t is computed from everything before token t.

    Only the rows from the last prompt token to the last-but-one response token reach the vocabulary head.
    """
    output = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
        logits_to_keep=batch.response_length + 1,
        **picture_inputs(model, batch.input_ids, batch.pixels),
    )
    return output.logits[:, :-1]


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

    own = encoded.pooler_output
    encoded.pooler_output = torch.stack(dealt(own)) if isinstance(own, Tensor) else tuple(dealt(own))
    if getattr(encoded, "deepstack_features", None) is not None:  # Qwen3-VL's for the inner layers
        encoded.deepstack_features = [tuple(dealt(layer)) for layer in encoded.deepstack_features]
    grid = {} if "image_grid_thw" not in tensors else {"image_grid_thw": torch.cat([e["image_grid_thw"] for e in rows])}
    return {"mm_encoder_outputs": {"image": encoded}} | grid | token_kinds(model, input_ids)


def token_kinds(
    model: PreTrainedModel, input_ids: Int[Tensor, "rollout tokens"]
) -> dict[str, Int[Tensor, "rollout tokens"]]:
    """1 where a picture's features go, under the name that `model` asks for it by, if it does.

    Qwen needs it for positions, Gemma 3 for its mask: the tokens of a picture see each other in both directions.
    """
    asked = inspect.signature(model.forward).parameters
    kinds = (input_ids == model.config.image_token_id).int()
    return {name: kinds for name in ("mm_token_type_ids", "token_type_ids") if name in asked}


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
