"""Position ids for multimodal RoPE, the same for trainer and sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRIDS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
"""The processor's names for the shapes of pictures and videos."""


def token_types(model: PreTrainedModel, input_ids: Int[Tensor, "row column"]) -> Int[Tensor, "row column"]:
    """What transformers calls ``mm_token_type_ids``: 1 on image tokens, 2 on video tokens, 0 on text."""
    types = (input_ids == model.config.image_token_id).int()
    return types + 2 * (input_ids == getattr(model.config, "video_token_id", -1)).int()


def position_ids(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "row column"],
    attention_mask: Int[Tensor, "row column"],
    grids: dict[str, Tensor],
) -> Int[Tensor, "3 row column"] | Int[Tensor, "row column"]:
    """Positions that skip the padding; in time, height and width where the model has multimodal RoPE (Qwen-VL).

    They are always passed explicitly, because the model would otherwise count the padding of prompts without a
    picture and keep the offsets of this batch for its next forward.

    Two things are not as transformers' ``get_rope_index`` has them:

    - What follows a video starts after the largest position in it, temporal ones included, as in Qwen's own code and in
      vLLM. transformers (5.3 to 5.19 at least) counts on from the larger of height and width, so that the text after a
      long video would stand at the same positions as its frames.
    - Temporal positions are ⌊patch · seconds per patch · tokens per second⌋ in float64, again as in vLLM: float32
      rounds some of them up.

    Args:
        grids: of all rows, in order: ``image_grid_thw``, ``video_grid_thw``, ``second_per_grid_ts``; without those
            that there are none of.
    """
    rope_index = getattr(model.base_model, "get_rope_index", None)
    if rope_index is None:
        return (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
    types = token_types(model, input_ids)
    seconds = grids.get("second_per_grid_ts")
    positions, _ = rope_index(
        input_ids,
        mm_token_type_ids=types,
        image_grid_thw=grids.get("image_grid_thw"),
        video_grid_thw=grids.get("video_grid_thw"),
        second_per_grid_ts=None if seconds is None else seconds.double(),
        attention_mask=attention_mask,
    )
    if "video_grid_thw" not in grids:
        return positions
    return _after_each_span(positions, types, attention_mask.bool())


def _after_each_span(
    positions: Int[Tensor, "3 row column"], types: Int[Tensor, "row column"], visible: Bool[Tensor, "row column"]
) -> Int[Tensor, "3 row column"]:
    """`positions` moved up where a span of text or vision begins at or below what an earlier one holds."""
    moved = positions.clone()
    for row in range(types.shape[0]):
        columns = visible[row].nonzero()[:, 0]
        starts = torch.cat([types[row, columns].diff().nonzero()[:, 0] + 1, columns.new_tensor([len(columns)])])
        shift, begin, reached = 0, 0, -1
        for end in starts.tolist():
            span = columns[begin:end]
            lowest, highest = positions[:, row, span].aminmax()
            shift = max(shift, reached + 1 - int(lowest))
            moved[:, row, span] += shift
            begin, reached = end, int(highest) + shift
    return moved
