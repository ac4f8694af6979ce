"""Pictures and videos with patches blacked out, for schemes that ask what the policy says without seeing all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from atrl.credit.base import PictureMask, seed_of

if TYPE_CHECKING:
    from transformers import ProcessorMixin


@dataclass(frozen=True, slots=True)
class PictureScale:
    """How the processor scales a picture's channels: (value - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def mask_scale(processor: ProcessorMixin, asked: str, instead: str) -> PictureScale:
    """How `processor` scales the patches that are to be blacked out.

    Args:
        processor: of the policy.
        asked: the setting that asks for it, for messages.
        instead: what may be set in its place.

    Raises:
        ValueError: if the processor makes no patches, or scales pictures and videos differently.
    """
    pictures = processor.image_processor
    scale = PictureScale(tuple(pictures.image_mean), tuple(pictures.image_std))
    if not hasattr(pictures, "merge_size"):
        raise ValueError(
            f"{asked} blacks out patches, and this model's {type(pictures).__name__} cuts pictures into none: use a "
            f"Qwen-VL model, or {instead}"
        )
    videos = getattr(processor, "video_processor", None)
    if videos is not None and (other := PictureScale(tuple(videos.image_mean), tuple(videos.image_std))) != scale:
        raise ValueError(
            f"{asked} masks pictures and videos with the same black, and this model's processors scale them "
            f"differently ({scale} and {other}): choose {instead}, which masks nothing"
        )
    return scale


def black_patch(mean: Sequence[float], std: Sequence[float], width: int) -> Float[Tensor, "width"]:
    """What the processor makes of a black patch: (0 - mean)/std, channel by channel, flattened to `width` numbers."""
    assert width % len(mean) == 0, f"a patch of {width} numbers does not divide into {len(mean)} channels"
    black = -torch.tensor(mean) / torch.tensor(std)
    return black.repeat_interleave(width // len(mean))


def mask_pixels(
    pixels: Sequence[dict[str, Tensor]],
    keys: Sequence[str],
    mask: PictureMask,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> list[dict[str, Tensor]]:
    """`pixels` with round(ratio · patches) patches of each prompt's pictures blacked out, and as much of its videos.

    In a video the same places are black in all frames ("tubes", as in VideoMAE, Tong et al., arXiv 2203.12602): what
    one frame hid, the next would show. Of each video it is round(ratio · places).

    Which ones is a function of the mask's seed and of the rollout's key without its sample number alone, so that the
    responses of a group see the same masked picture, whatever the batch is cut into.
    """
    done: dict[int, dict[str, Tensor]] = {}
    for entry, key in zip(pixels, keys, strict=True):
        if id(entry) not in done:
            done[id(entry)] = _masked(entry, seed_of("mask", mask.seed, key.rsplit("/", 1)[0]), mask.ratio, mean, std)
    return [done[id(entry)] for entry in pixels]


def _masked(
    entry: dict[str, Tensor], seed: int, ratio: float, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Tensor]:
    generator, masked = torch.Generator().manual_seed(seed), dict(entry)
    if "pixel_values" in entry:
        patches = len(entry["pixel_values"])
        chosen = torch.randperm(patches, generator=generator)[: round(ratio * patches)]
        masked["pixel_values"] = _blackened(entry["pixel_values"], chosen, mean, std)
    if "pixel_values_videos" in entry:
        chosen = _tubes(entry["video_grid_thw"].tolist(), ratio, generator)
        masked["pixel_values_videos"] = _blackened(entry["pixel_values_videos"], chosen, mean, std)
    return masked


def _tubes(grids: Sequence[Sequence[int]], ratio: float, generator: torch.Generator) -> Int[Tensor, "chosen"]:
    """Numbers of the blacked-out patches of videos whose patches lie frame by frame, one video after the other."""
    chosen, start = [], 0
    for times, height, width in grids:
        places = height * width
        black = torch.randperm(places, generator=generator)[: round(ratio * places)]
        chosen.append((start + places * torch.arange(times)[:, None] + black).flatten())
        start += times * places
    return torch.cat(chosen)


def _blackened(
    values: Float[Tensor, "patch width"], chosen: Int[Tensor, "chosen"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "patch width"]:
    black = black_patch(mean, std, values.shape[1]).to(values)
    return values.index_copy(0, chosen.to(values.device), black.expand(len(chosen), -1))
