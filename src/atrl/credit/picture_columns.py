"""Which picture or video of its prompt an image token belongs to."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from atrl.credit.regions import Regions
from atrl.types import Experience


def picture_columns(batch: Experience, regions: Regions, config: Any) -> Float[Tensor, "response image picture"]:
    """1 where an image column is of a picture, else 0: mass on image tokens times this is mass on pictures.

    Pictures and videos count in the order in which they begin. Where the processor gives grids of patches (Qwen) they
    say how many tokens each has, and a video is one whatever stands between its frames; else every unbroken run of
    image tokens is a picture.

    Args:
        batch: one response a row.
        regions: of `batch`.
        config: of the model, for token ids and patches per token.

    Raises:
        AssertionError: if the grids give another number of tokens than a prompt has.
    """
    numbers = [_numbers(batch, regions, row, config) for row in range(regions.size)]
    count = max((int(own.max()) + 1 for own in numbers if len(own)), default=0)
    found = torch.zeros(*regions.columns.shape, count, device=regions.columns.device)
    for row, own in enumerate(numbers):
        found[row, torch.arange(len(own)), own] = 1.0
    return found


def _numbers(batch: Experience, regions: Regions, row: int, config: Any) -> Int[Tensor, "own_image"]:
    """The picture of each image column of a response, from 0."""
    columns = regions.columns[row][regions.column_mask[row]].cpu()
    grids = [name for name in ("image_grid_thw", "video_grid_thw") if name in batch.pixels[row]]
    if not grids:
        return (columns.diff(prepend=columns[:1] - 1) != 1).cumsum(0)
    is_video = batch.input_ids[row].cpu()[columns] == getattr(config, "video_token_id", None)
    merged = config.vision_config.spatial_merge_size**2
    numbers, before = torch.zeros_like(columns), 0
    for name in grids:
        tokens = batch.pixels[row][name].cpu().prod(dim=1) // merged
        mine = is_video if name == "video_grid_thw" else ~is_video
        assert int(tokens.sum()) == int(mine.sum()), f"{name} gives {int(tokens.sum())} tokens, not {int(mine.sum())}"
        numbers[mine] = before + torch.arange(len(tokens)).repeat_interleave(tokens)
        before += len(tokens)
    order = {number: place for place, number in enumerate(dict.fromkeys(numbers.tolist()))}
    return torch.tensor([order[number] for number in numbers.tolist()])
