"""One forward pass of a vision-language model over a batch of experience."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from atrl.models.positions import GRIDS, position_ids, token_types
from atrl.models.vision import encoding
from atrl.sharding import is_sharded
from atrl.types import Experience

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_OF_VIDEOS = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


def response_logits(model: PreTrainedModel, batch: Experience) -> Float[Tensor, "rollout response vocabulary"]:
    """The logits that predict each response token: row t is computed from everything before token t.

    Only the rows from the last prompt token to the last-but-one response token reach the vocabulary head.
    """
    with vision_in_step(model, batch):
        output = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,
            logits_to_keep=batch.response_length + 1,
            **picture_inputs(model, batch.input_ids, batch.attention_mask, batch.pixels),
        )
    return output.logits[:, :-1]


@contextmanager
def vision_in_step(model: PreTrainedModel, batch: Experience) -> Iterator[None]:
    """Around a pass over `batch`: if it alone has no picture, its rank runs a sharded vision tower with the others."""
    # Before the rest, as where there are pictures: ranks must run a sharded model's blocks in the same order.
    idle = is_sharded(model) and batch.pictures_somewhere and not any(batch.pixels)
    with _added_to_embeddings(model, idle_vision(model)) if idle else nullcontext():
        yield


@contextmanager
def _added_to_embeddings(model: PreTrainedModel, nothing: Float[Tensor, ""]) -> Iterator[None]:
    """Where a picture's features come in, so that the backward pass reaches the vision tower when it does with one.

    FSDP ends a block when the gradient of its input is there. With frozen embeddings the first block's has none unless
    something else is in it, and ranks would then wait for each other in a different order.
    """
    hook = model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output + nothing)
    try:
        yield
    finally:
        hook.remove()


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
    with encoding(model, ()):
        encoded = _features(model, **inputs)
    outputs = [*encoded.pooler_output, *(part for layer in _deepest(encoded) for part in layer)]
    return 0.0 * sum(part.float().sum() for part in outputs)


def picture_inputs(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "rollout tokens"],
    attention_mask: Int[Tensor, "rollout tokens"],
    pixels: Sequence[dict[str, Tensor]],
) -> dict[str, Any]:
    """Keyword arguments that give `model` the pictures and videos of every row, and where its tokens stand.

    A picture or video is encoded once, however many rows share its tensors (the responses of a group do); gradients of
    all those rows flow into that one encoding. All of a batch go through the vision tower together: Qwen's makes no
    difference between a picture and a video, and ranks of a sharded model must run it equally often.
    """
    rows = [entry for entry in pixels if entry]
    found = {name: [entry[name] for entry in rows if name in entry] for name in GRIDS}
    grids = {name: torch.cat(tensors) for name, tensors in found.items() if tensors}
    inputs = {"position_ids": position_ids(model, input_ids, attention_mask, grids)}
    if not rows:
        return inputs
    parts = {(id(entry), kind): part for entry in rows for kind, part in _parts(entry).items()}
    tensors = {name: torch.cat([part[name] for part in parts.values()]) for name in next(iter(parts.values()))}
    with encoding(model, tuple(parts)):
        encoded = _features(model, **tensors)

    def dealt(features: Iterable[Tensor], kind: str) -> list[Tensor]:
        each = iter(features)
        by_part = {key: [next(each) for _ in range(_encodings(part))] for key, part in parts.items()}
        return [feature for entry in rows for feature in by_part.get((id(entry), kind), ())]

    own, deeper = encoded.pooler_output, _deepest(encoded)
    # Not in transformers' own type: FSDP would find the features in it, take them for the model's input, and divide
    # its parameters again, and their gradients, once more than on a rank without a picture.
    outputs = {
        kind: SimpleNamespace(
            pooler_output=torch.stack(dealt(own, kind)) if isinstance(own, Tensor) else tuple(dealt(own, kind)),
            deepstack_features=[tuple(dealt(layer, kind)) for layer in deeper] or None,
        )
        for kind in dict.fromkeys(kind for _, kind in parts)
    }
    return inputs | {"mm_encoder_outputs": outputs} | token_kinds(model, input_ids)


def _parts(entry: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A prompt's pictures and its videos, each as `get_image_features` takes pictures."""
    parts = {}
    if "pixel_values" in entry:
        parts["image"] = {name: tensor for name, tensor in entry.items() if name not in _OF_VIDEOS}
    if "pixel_values_videos" in entry:
        parts["video"] = {"pixel_values": entry["pixel_values_videos"], "image_grid_thw": entry["video_grid_thw"]}
    return parts


def token_kinds(
    model: PreTrainedModel, input_ids: Int[Tensor, "rollout tokens"]
) -> dict[str, Int[Tensor, "rollout tokens"]]:
    """1 where a picture's features go and 2 where a video's do, under the name that `model` asks for it by, if it does.

    Gemma 3 needs it for its mask: the tokens of a picture see each other in both directions.
    """
    asked = inspect.signature(model.forward).parameters
    kinds = token_types(model, input_ids)
    return {name: kinds for name in ("mm_token_type_ids", "token_type_ids") if name in asked}


def _features(model: PreTrainedModel, pixel_values: Tensor, **shapes: Tensor) -> Any:
    """What the model's vision tower makes of pictures."""
    encode = cast("Callable[..., Any]", model.get_image_features)  # of models with pictures alone, so of no base class
    return encode(pixel_values, **shapes, return_dict=True)


def _deepest(encoded: Any) -> Sequence[Sequence[Tensor]]:
    """The features that Qwen3-VL's inner layers take as well; of other models none."""
    return getattr(encoded, "deepstack_features", None) or ()


def _encodings(entry: dict[str, Tensor]) -> int:
    """How many tensors of features a prompt's pictures or videos become: one a picture of a grid, else one a tile."""
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
