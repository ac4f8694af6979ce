"""How the gradients of a batch's pieces, and of all ranks, become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from atrl import parallel


class GradientSum(Protocol):
    """`add` after every backward pass; `finish` leaves the whole batch's gradient, of all ranks, in `.grad`."""

    def add(self, parameters: Sequence[nn.Parameter]) -> None: ...
    def finish(self, parameters: Sequence[nn.Parameter]) -> None: ...


class RunningSum:
    """autograd's own: in the parameters' precision, in the order of the backward passes."""

    def add(self, parameters: Sequence[nn.Parameter]) -> None:
        """Nothing: a backward pass adds to what is in `.grad`."""

    def finish(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add those of the other ranks."""
        parallel.add_gradients(parameters)


class DoubleSum:
    """In float64, and rounded once: order and split over ranks then change a bit only where it is on the very edge.

    Costs 8 bytes a parameter.
    """

    def __init__(self) -> None:
        self._totals: dict[int, Tensor] = {}

    def add(self, parameters: Sequence[nn.Parameter]) -> None:
        """Take the gradients of one backward pass."""
        for index, parameter in enumerate(parameters):
            if parameter.grad is not None:
                gradient = parameter.grad.double()
                self._totals[index] = self._totals[index] + gradient if index in self._totals else gradient
                parameter.grad = None

    def finish(self, parameters: Sequence[nn.Parameter]) -> None:
        """Hand the sums back; a parameter that no rank's rollouts touched keeps no gradient."""
        touched = parallel.sums(index in self._totals for index in range(len(parameters)))
        for index, parameter in enumerate(parameters):
            if touched[index]:
                total = self._totals.get(index, torch.zeros_like(parameter, dtype=torch.float64))
                if parallel.world_size() > 1:
                    dist.all_reduce(total)
                parameter.grad = total.to(parameter.dtype)
        self._totals.clear()
