"""Pictures with patches blacked out, for schemes that ask what the policy says without seeing all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from atrl.credit.base import PictureMask, seed_of


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
    """`pixels` with round(ratio · patches) patches of each prompt's pictures blacked out.

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
    if "pixel_values" not in entry:
        return dict(entry)
    values = entry["pixel_values"]
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    chosen = order[: round(ratio * len(values))].to(values.device)
    black = black_patch(mean, std, values.shape[1]).to(values)
    return entry | {"pixel_values": values.index_copy(0, chosen, black.expand(len(chosen), -1))}
