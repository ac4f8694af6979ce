"""What `connectivity.reduce_without_sinks` makes of rows on the picture that are too many to be held at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.credit.connectivity import in_most_rows, leave_out, may_have_sinks, sink_limit

if TYPE_CHECKING:
    from atrl.credit.window import Seen

Masses = Callable[[slice], Float[Tensor, "rollout head row image"]]
"""Of some rows of a response, worked out anew each time they are asked for."""


def reduce_by_rows(
    masses: Masses,
    parts: list[slice],
    image_mask: Bool[Tensor, "rollout image"],
    response_mask: Bool[Tensor, "rollout response"],
    *,
    factor: float,
    seen: Seen | None = None,
) -> Iterator[tuple[slice, Float[Tensor, "rollout head row image"]]]:
    """The masses without sinks, some rows at a time; the rule is `connectivity.remove_sinks`'s.

    All rows are looked at before the first is given: for their sums and largest entries, which tell whether there may
    be a sink at all, and if so again for how many rows each column is above the limit in.

    Args:
        masses: what `parts` are asked of.
        parts: consecutive rows that cover the response.
        image_mask: which columns are real.
        response_mask: which rows are.
        factor: even shares above which a column is a sink; 0 removes nothing.
        seen: what all rows see where a window hides columns from some.
    """
    sink = _sinks(masses, parts, image_mask, response_mask, factor, seen) if factor else None
    for part in parts:
        mass = masses(part)
        yield part, mass if sink is None else leave_out(mass, sink)


def _sinks(
    masses: Masses, parts: list[slice], image_mask: Tensor, response_mask: Tensor, factor: float, seen: Seen | None
) -> Bool[Tensor, "rollout head 1 image"] | None:
    """Which columns are sinks; None if none can be."""
    sums = [(mass.sum(dim=-1), mass.amax(dim=-1)) for mass in map(masses, parts)]
    total, peak = (torch.cat(found, dim=-1) for found in zip(*sums, strict=True))
    limit = sink_limit(total, image_mask, response_mask, factor, seen)
    if not may_have_sinks((peak > limit).sum(dim=-1), response_mask, seen).any():
        return None
    above = ((masses(part) > limit[..., part, None]).sum(dim=2) for part in parts)
    count = sum(above, start=limit.new_zeros(()))
    return in_most_rows(count, response_mask, seen)[:, :, None]
