"""When a run has gone wrong: bounds on its metrics, and gradients that would destroy the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

EXIT_ALARM = 3
"""What a run that an alarm stopped exits with, to be told from bad settings (2) and bugs (1)."""


class AlarmStop(RuntimeError):
    """An alarm ended the run; the message is for the user."""

    exit_code = EXIT_ALARM


class NonFiniteStop(AlarmStop):
    """A loss or gradient was not finite; the update was not taken."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What a metric may be.

    Args:
        metric: its name, as it is logged. Where a run doesn't have it, nothing is looked at.
        side: which side of the bounds is bad.
        warn: beyond it a warning is printed; null for none.
        stop: beyond it the run stops; null for never.
        reference_steps: above 0 the bounds are factors of the metric's mean over the first so many steps.
        meaning: what it is a sign of, for the message.
    """

    metric: str
    side: Literal["above", "below"] = "above"
    warn: float | None = None
    stop: float | None = None
    reference_steps: int = 0
    meaning: str = ""

    def __post_init__(self) -> None:
        if self.reference_steps < 0:
            raise ValueError(f"callbacks.alarms: reference_steps of {self.metric} must be 0 or more")
        if self.warn is not None and self.stop is not None and not self._beyond_or_at(self.stop, self.warn):
            raise ValueError(
                f"callbacks.alarms: the bounds of {self.metric} must be passed in the order warn, stop, got "
                f"{self.warn} and {self.stop} with side={self.side}"
            )

    def passed(self, value: float, bound: float | None) -> bool:
        """Whether `value` is beyond `bound`; one that is not a number is beyond every bound there is."""
        if bound is None:
            return False
        return not (value <= bound if self.side == "above" else value >= bound)

    def _beyond_or_at(self, value: float, bound: float) -> bool:
        return value >= bound if self.side == "above" else value <= bound


@dataclass
class Alarm:
    """One bound over the steps of a run."""

    name: str
    bound: Bound
    patience: int
    """Steps in a row beyond a bound before it counts."""
    first: list[float] = field(default_factory=list)
    beyond_warn: int = 0
    beyond_stop: int = 0

    def look(self, value: float) -> tuple[Literal["fine", "warn", "stop"], str]:
        """What a step's value says, and the line for the user; a warning comes once each time the bound is passed."""
        if len(self.first) < self.bound.reference_steps:
            self.first.append(value)
            return "fine", ""
        reference = sum(self.first) / len(self.first) if self.first else 1.0
        from_zero = math.inf * value if value else 1.0  # what is still 0 has not moved
        measured = value / reference if reference else from_zero
        self.beyond_warn = self.beyond_warn + 1 if self.bound.passed(measured, self.bound.warn) else 0
        self.beyond_stop = self.beyond_stop + 1 if self.bound.passed(measured, self.bound.stop) else 0
        if self.beyond_stop >= self.patience:
            return "stop", self._line(value, reference, "stop")
        if self.beyond_warn == self.patience:
            return "warn", self._line(value, reference, "warn")
        return "fine", ""

    def _line(self, value: float, reference: float, kind: str) -> str:
        bound = getattr(self.bound, kind)
        than = f"{bound:g}" if not self.first else f"{bound:g} times the {reference:.4g} of the first steps"
        meaning = f": {self.bound.meaning}" if self.bound.meaning else ""
        return f"alarm {self.name}: {self.bound.metric} is {value:.4g}, {self.bound.side} {than}{meaning}"


def clip_gradients(
    model: nn.Module, max_norm: float, losses: Iterable[Tensor], weights: Iterable[Tensor] = ()
) -> float:
    """Scale the gradients of `model` down to `max_norm` together, and return their norm from before.

    Args:
        losses: of the micro-batches that the gradients are of, to name what was not finite.
        weights: by which credit weighed their tokens, likewise.

    Raises:
        NonFiniteStop: if the norm is not finite, before anything is changed. The gradients are those of all ranks, so
            every rank raises.
    """
    import torch

    from atrl.sharding import whole

    named = [(name, p) for name, p in model.named_parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for _, parameter in named])
    value = float(whole(norm))
    if not math.isfinite(value):
        raise NonFiniteStop(
            f"alarm non_finite: {_what_is_not_finite(named, losses, weights)}; the update was not taken"
        )
    torch.nn.utils.clip_grads_with_norm_([parameter for _, parameter in named], max_norm, norm)
    return value


def _what_is_not_finite(
    named: Sequence[tuple[str, nn.Parameter]], losses: Iterable[Tensor], weights: Iterable[Tensor]
) -> str:
    """Of all ranks, each of which has its own losses and, where the model is divided, its own part of each gradient."""
    from atrl import parallel
    from atrl.sharding import own_part

    lost, unweighed = (any(not bool(found.isfinite().all()) for found in tensors) for tensors in (losses, weights))
    broken = [not bool(own_part(parameter.grad).isfinite().all()) for _, parameter in named]
    lost_anywhere, unweighed_anywhere, *counts = parallel.sums([lost, unweighed, *broken])
    bad = [name for (name, _), count in zip(named, counts, strict=True) if count]
    what = "the loss is not finite" if lost_anywhere else "the gradient is not finite, though the loss is"
    if unweighed_anywhere:
        what = "weights that credit gave are not finite, and so neither is the loss"
    if not bad:
        return f"{what} (every gradient is, and only their norm overflows)"
    return f"{what} (gradient of {len(bad)} of {len(named)} parameters, the first {bad[0]})"
