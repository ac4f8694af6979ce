"""The policy's weights, parameter by parameter, for a sampler to take over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from atrl.sharding import whole

if TYPE_CHECKING:
    from torch import Tensor, nn


def named_parameters(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter once, detached, by its name in the transformers model; nothing is copied unless it is sharded.

    A tied output head is left out: it is the embedding under another name, and samplers tie it themselves.
    """
    for name, parameter in policy.named_parameters():
        yield name, whole(parameter.detach())
