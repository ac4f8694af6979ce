"""Attention → connectivity density: how strongly the row of each response token reads the picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from atrl.credit.attention import AttentionCapture
    from atrl.credit.window import Seen

Reduction = Literal["mean", "peak", "relative", "top_heads"]

SMALLEST_REST = 2**-10
"""Of a row: where its sinks leave less, it counts for blind. ``1 − sink mass`` cancels, and a mass is exp(score −
log-sum-exp): as far off as these are, which is their ulp each time one is rounded, here and by the model's kernel. Of
numbers up to 128 an ulp is at most 2⁻¹⁷. With four of them a rest of 2⁻¹⁰ is off by a thirty-second, and all that is
said of the row with it; of scores up to 1,024 it would be by a quarter."""


def remove_sinks(
    image: Float[Tensor, "rollout head response image"],
    image_mask: Bool[Tensor, "rollout image"],
    response_mask: Bool[Tensor, "rollout response"],
    *,
    factor: float,
    seen: Seen | None = None,
) -> Float[Tensor, "rollout head response image"]:
    """Image mass without the columns that draw attention whatever the query; rows renormalised as if they were absent.

    In one head of one response, column v is a sink if in most of the response's rows it holds more than `factor` times
    its even share of the row's image mass: ``a[t,v] > factor · Σ_u a[t,u] / V`` for more than half of the t. With no
    more than `factor` columns none can be a sink. Where a sliding window hides columns, as `seen` says, V is the number
    of columns that row t sees, and the t are the rows that see v. What is left of a row is divided by (1 - sink mass),
    so that it is the softmax over all other columns (`leave_out`). Attention sinks: Xiao et al., arXiv 2309.17453; that
    AT-RL removes them is the paper's, the rule is ours.
    """
    limit = sink_limit(image.sum(dim=-1), image_mask, response_mask, factor, seen)[..., None]
    above = torch.gt(image, limit, out=torch.empty_like(image))  # 0 and 1: to count booleans copies them first
    return leave_out(image, in_most_rows(above.sum(dim=2), response_mask, seen)[:, :, None])


def leave_out(
    image: Float[Tensor, "rollout head row image"], sink: Bool[Tensor, "rollout head 1 image"]
) -> Float[Tensor, "rollout head row image"]:
    """Rows as if their sinks were absent: the softmax over all other columns; 0 where `SMALLEST_REST` isn't left.

    What is left is no less than what is seen of it, so that no row sums to more than 1 because of rounding.
    """
    sink_mass = (image * sink).sum(dim=-1, keepdim=True)
    kept = image * ~sink
    # Beside no sink, masses are what they are: a sum that rounding has put above 1 is no reason to change them.
    rest = torch.maximum(1 - sink_mass, kept.sum(dim=-1, keepdim=True).clamp_max_(1))
    return kept.div_(rest.masked_fill_(rest < SMALLEST_REST, torch.inf))


def reduce_without_sinks(
    image: Float[Tensor, "rollout head response image"],
    image_mask: Bool[Tensor, "rollout image"],
    response_mask: Bool[Tensor, "rollout response"],
    *,
    factor: float,
    seen: Seen | None = None,
) -> tuple[
    Float[Tensor, "rollout head response image"],
    Float[Tensor, "rollout head response"],
    Float[Tensor, "rollout head response"],
]:
    """(`remove_sinks` of `image`, the sum of each of its rows, the largest entry); a `factor` of 0 removes nothing.

    No column is above the limit in more rows than the largest one is: where those are too few for a sink, which is the
    rule, the head has none, and its sums and largest entries are those that show this.
    """
    if not image.shape[-1]:
        return image, image.sum(dim=-1), image.sum(dim=-1)
    if factor and image.device.type != "cpu":  # asking which heads are doubtful would wait for it
        image = remove_sinks(image, image_mask, response_mask, factor=factor, seen=seen)
        return image, image.sum(dim=-1), image.amax(dim=-1)
    total, peak = image.sum(dim=-1), image.amax(dim=-1)
    if not factor:
        return image, total, peak
    above = peak > sink_limit(total, image_mask, response_mask, factor, seen)
    doubtful = may_have_sinks(above.sum(dim=2), response_mask, seen)
    if doubtful.all():
        image = remove_sinks(image, image_mask, response_mask, factor=factor, seen=seen)
        return image, image.sum(dim=-1), image.amax(dim=-1)
    rollout, head = doubtful.nonzero(as_tuple=True)
    if len(rollout):
        masks = image_mask[rollout], response_mask[rollout]
        own = None if seen is None else seen.of(rollout)
        left = remove_sinks(image[rollout, head][:, None], *masks, factor=factor, seen=own)[:, 0]
        pair = (rollout, head)
        image = image.index_put(pair, left)
        total, peak = total.index_put(pair, left.sum(dim=-1)), peak.index_put(pair, left.amax(dim=-1))
    return image, total, peak


def sink_limit(
    total: Float[Tensor, "rollout head response"],
    image_mask: Bool[Tensor, "rollout image"],
    response_mask: Bool[Tensor, "rollout response"],
    factor: float,
    seen: Seen | None = None,
) -> Float[Tensor, "rollout head response"]:
    """What a column of a row must exceed to count for a sink; infinite on padding, and where there are so few columns
    that only rounding could put one above."""
    columns = (image_mask.sum(dim=1, keepdim=True) if seen is None else seen.columns).clamp_min(1)[:, None]
    return (factor * total / columns).masked_fill_(~response_mask[:, None] | (columns <= factor), torch.inf)


def in_most_rows(
    count: Float[Tensor, "rollout head image"],
    response_mask: Bool[Tensor, "rollout response"],
    seen: Seen | None = None,
) -> Bool[Tensor, "rollout head image"]:
    """Whether so many rows are more than half of those that see the column."""
    rows = response_mask.sum(dim=1, keepdim=True) if seen is None else seen.rows
    return 2 * count > rows[:, None]


def may_have_sinks(
    count: Float[Tensor, "rollout head"], response_mask: Bool[Tensor, "rollout response"], seen: Seen | None = None
) -> Bool[Tensor, "rollout head"]:
    """Whether a head that has columns above the limit in so many rows may have one that is `in_most_rows`."""
    if seen is not None:  # a column that only one row sees needs no more
        return count > 0
    return 2 * count > response_mask.sum(dim=1, keepdim=True)


def connectivity_density(
    capture: AttentionCapture, response_mask: Bool[Tensor, "rollout response"], *, reduction: Reduction, top_heads: int
) -> Float[Tensor, "rollout response"]:
    """One number a token from its mass on the picture in every head that was read; 0 on padding.

    ``mean``: the total mass on the picture, averaged over heads and layers. ``peak``: the largest mass on a single
    image token in any head of any layer; a token that reads one place stands out there even if most heads look
    elsewhere. ``relative``: the peaks of each head over their mean in the response, averaged over heads, so that heads
    that look at the picture often do not drown those that do so seldom and sharply. ``top_heads``: the same over the
    `top_heads` heads whose relative peaks vary most in this response.
    """
    return torch.where(response_mask, _REDUCTIONS[reduction](capture, response_mask, top_heads), 0.0)


def relative_peaks(
    capture: AttentionCapture, response_mask: Bool[Tensor, "rollout response"]
) -> Float[Tensor, "rollout head response"]:
    """Each head's peaks over their mean over the response's tokens, all layers' heads in a row; 0 of a blind head."""
    peak = torch.where(response_mask[:, None], capture.peak.flatten(1, 2), 0.0)
    mean = peak.sum(dim=2, keepdim=True) / response_mask.sum(dim=1).clamp_min(1)[:, None, None]
    return torch.where(mean > 0, peak / mean.clamp_min(torch.finfo(peak.dtype).tiny), 0.0)


_REDUCTIONS: dict[str, Callable[[AttentionCapture, Tensor, int], Tensor]] = {
    "mean": lambda capture, mask, top_heads: capture.total.mean(dim=(1, 2)),
    "peak": lambda capture, mask, top_heads: capture.peak.amax(dim=(1, 2)),
    "relative": lambda capture, mask, top_heads: relative_peaks(capture, mask).mean(dim=1),
    "top_heads": lambda capture, mask, top_heads: top_heads_mean(
        relative_peaks(capture, mask), mask, top_heads=top_heads
    ),
}


def top_heads_mean(
    scores: Float[Tensor, "rollout head response"], response_mask: Bool[Tensor, "rollout response"], *, top_heads: int
) -> Float[Tensor, "rollout response"]:
    """The mean over the `top_heads` heads with the most contrast in each response (see `head_contrast`)."""
    kept = min(top_heads, scores.shape[1])
    # Stable, so that ties fall the same way in every batch.
    best = head_contrast(scores, response_mask).argsort(dim=1, descending=True, stable=True)[:, :kept]
    return scores.gather(1, best[:, :, None].expand(-1, -1, scores.shape[2])).mean(dim=1)


def head_contrast(
    scores: Float[Tensor, "rollout head response"],
    response_mask: Bool[Tensor, "rollout response"],
    seen: Bool[Tensor, "rollout head response"] | None = None,
) -> Float[Tensor, "rollout head"]:
    """How much a head tells a response's tokens apart: standard deviation of its scores over the trained tokens,

    or over those of them that are `seen`, where the others' scores say nothing.

    Of relative peaks it is the coefficient of variation of the peaks. A head that reads where the text calls for it
    looks sharply for a few tokens and hardly for the rest; one that looks at the picture always has no spread.
    """
    counted = response_mask[:, None] if seen is None else response_mask[:, None] & seen
    scores = torch.where(counted, scores, 0.0)
    count = counted.sum(dim=2).clamp_min(1)
    mean = scores.sum(dim=2) / count
    squares = ((scores - mean[..., None]) ** 2 * counted).sum(dim=2)
    return (squares / count).sqrt()
