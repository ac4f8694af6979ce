"""Pictures and videos with patches hidden, for schemes that ask what the policy says without seeing all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from atrl.credit.base import Hiding, PictureMask, seed_of

if TYPE_CHECKING:
    from transformers import ProcessorMixin


Hide = Callable[[Mapping[str, Tensor], float, torch.Generator], dict[str, Tensor]]
"""What a processor made of a prompt's pictures, share of patches, generator → what of it is replaced."""


@dataclass(frozen=True, slots=True)
class PictureScale:
    """How the processor scales a picture's channels: (value - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def mask_scale(processor: ProcessorMixin, asked: str, instead: str, by: Hiding = "black") -> PictureScale:
    """How `processor` scales the patches that are to be masked.

    Args:
        processor: of the policy.
        asked: the setting that asks for it, for messages.
        instead: what may be set in its place.
        by: what becomes of them.

    Raises:
        ValueError: if the processor makes no patches, or scales pictures and videos differently and black is asked for.
    """
    pictures = processor.image_processor
    scale = PictureScale(tuple(pictures.image_mean), tuple(pictures.image_std))
    if not hasattr(pictures, "merge_size"):
        raise ValueError(
            f"{asked} masks patches, and this model's {type(pictures).__name__} cuts pictures into none: use a "
            f"Qwen-VL model, or {instead}"
        )
    videos = getattr(processor, "video_processor", None)
    if by == "shuffled" or videos is None:
        return scale
    if (other := PictureScale(tuple(videos.image_mean), tuple(videos.image_std))) != scale:
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
    """`pixels` with round(ratio · patches) patches of each prompt's pictures hidden, and as much of its videos.

    Blacked out are as many of all of a prompt's pictures together. Patches that are shuffled change places within
    their picture: its colours stay, and where they are does not. In a video the same places are hidden in all frames
    ("tubes", as in VideoMAE, Tong et al., arXiv 2203.12602): what one frame hid, the next would show. Of each video it
    is round(ratio · places).

    Which ones is a function of the mask's seed and of the rollout's key without its sample number alone, so that the
    responses of a group see the same masked picture, whatever the batch is cut into.
    """
    ways: dict[Hiding, Hide] = {"black": partial(_blackened, black=(mean, std)), "shuffled": _shuffled}
    done: dict[int, dict[str, Tensor]] = {}
    for entry, key in zip(pixels, keys, strict=True):
        if id(entry) not in done:
            generator = torch.Generator().manual_seed(seed_of("mask", mask.seed, key.rsplit("/", 1)[0]))
            done[id(entry)] = entry | ways[mask.by](entry, mask.ratio, generator)
    return [done[id(entry)] for entry in pixels]


def _blackened(
    entry: Mapping[str, Tensor],
    ratio: float,
    generator: torch.Generator,
    *,
    black: tuple[Sequence[float], Sequence[float]],
) -> dict[str, Tensor]:
    """Some of the patches black, by the mean and standard deviation that they are scaled with."""
    chosen = {}
    if "pixel_values" in entry:
        patches = len(entry["pixel_values"])
        chosen["pixel_values"] = torch.randperm(patches, generator=generator)[: round(ratio * patches)]
    if "pixel_values_videos" in entry:
        tubes = _tubes(entry["video_grid_thw"].tolist(), ratio, generator)
        chosen["pixel_values_videos"] = torch.cat([tube.patches(tube.chosen) for tube in tubes])
    hidden = {}
    for name, index in chosen.items():
        values = entry[name]
        patch = black_patch(*black, values.shape[1]).to(values)
        hidden[name] = values.index_copy(0, index.to(values.device), patch.expand(len(index), -1))
    return hidden


def _shuffled(entry: Mapping[str, Tensor], ratio: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Some of the patches in each other's places."""
    hidden = {}
    for name, grids in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
        if name in entry:
            values, moved = entry[name], entry[name].clone()
            for tube in _tubes(entry[grids].tolist(), ratio, generator):
                others = tube.chosen[torch.randperm(len(tube.chosen), generator=generator)]
                moved[tube.patches(tube.chosen).to(values.device)] = values[tube.patches(others).to(values.device)]
            hidden[name] = moved
    return hidden


@dataclass(frozen=True, slots=True)
class _Tube:
    """Places of a picture, or of a video at all times."""

    chosen: Int[Tensor, "chosen"]
    first: int
    """Number of the first of its patches, which lie frame by frame, one picture or video after the other."""
    times: int
    places: int

    def patches(self, chosen: Int[Tensor, "chosen"]) -> Int[Tensor, "patch"]:
        """Numbers of the patches at the places `chosen`."""
        return (self.first + self.places * torch.arange(self.times)[:, None] + chosen).flatten()


def _tubes(grids: Sequence[Sequence[int]], ratio: float, generator: torch.Generator) -> Iterator[_Tube]:
    """round(ratio · places) of the places of each of the `grids`, (times, height, width)."""
    first = 0
    for times, height, width in grids:
        places = height * width
        chosen = torch.randperm(places, generator=generator)[: round(ratio * places)]
        yield _Tube(chosen, first, times, places)
        first += times * places
