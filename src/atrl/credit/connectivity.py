"""Attention → connectivity density: how strongly the row of each response token reads the picture."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Reduction = Literal["mean", "peak"]


def remove_sinks(
    image: Float[Tensor, "rollout layer head response image"],
    image_mask: Bool[Tensor, "rollout image"],
    response_mask: Bool[Tensor, "rollout response"],
    *,
    factor: float,
) -> Float[Tensor, "rollout layer head response image"]:
    """Image mass without the columns that draw attention whatever the query; rows renormalised as if they were absent.

    In one head of one response, column v is a sink when its median mass over the response's rows exceeds `factor`
    times the median that an even spread of the same image mass would give each column; of an even number of rows the
    lower middle one counts. With no more than `factor` columns none can be a sink. What is left of a row is divided
    by (1 - sink mass), so that it is the softmax over all other columns. Attention sinks: Xiao et al., arXiv
    2309.17453; that AT-RL removes them is the paper's, the rule is ours.
    """
    # Rows are sorted once per head; padding rows go last and are never reached by the median's index.
    valid = response_mask[:, None, None, :, None]
    ordered = image.masked_fill(~valid, float("inf")).sort(dim=3).values
    middle = ((response_mask.sum(dim=1) - 1).clamp_min(0) // 2)[:, None, None, None, None]
    median = ordered.gather(3, middle.expand(*ordered.shape[:3], 1, ordered.shape[4]))
    median = torch.where(median.isfinite(), median, 0.0)
    columns = image_mask.sum(dim=1).clamp_min(1)[:, None, None, None, None]
    sink = median > factor * median.sum(dim=-1, keepdim=True) / columns
    sink_mass = (image * sink).sum(dim=-1, keepdim=True)
    return (image * ~sink) / (1 - sink_mass).clamp_min(1e-6)


def connectivity_density(
    image: Float[Tensor, "rollout layer head response image"], *, reduction: Reduction
) -> Float[Tensor, "rollout response"]:
    """One number a token from its mass on every image column, in every head of every layer.

    ``mean``: the total mass on the picture, averaged over heads and layers. ``peak``: the largest mass on a single
    column in any head of any layer; a token that reads one place stands out there even if most heads look elsewhere.
    """
    if image.shape[-1] == 0:
        return image.new_zeros(image.shape[0], image.shape[3])
    if reduction == "mean":
        return image.sum(dim=-1).mean(dim=(1, 2))
    return image.amax(dim=(1, 2, 4))
