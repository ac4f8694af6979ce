"""Whether an engine and a trainer fit on one GPU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_GIB = 2**30


def check_engine_memory(*, share: float, free: int, total: int, training: int) -> None:
    """Say what to lower where the engine's share of a GPU isn't free, or leaves the trainer's state no room.

    Args:
        share: of the whole GPU that the engine takes (`rollout.sampler.gpu_memory_utilization`).
        free: bytes that nothing holds.
        total: bytes of the GPU.
        training: bytes that the trainer will hold beside the engine, even while it generates (`training_bytes`).

    Raises:
        ValueError: in one line, with a share that would fit where there is one.
    """
    wanted, room = share * total, free - training
    if wanted <= room:
        return
    asks = (
        f"rollout.sampler.gpu_memory_utilization={share:g} asks for {_gib(wanted)} of the GPU's {_gib(total)}, but "
        f"{_gib(free)} are free and weights and optimizer will need {_gib(training)} of them: "
    )
    fitting = math.floor(100 * room / total) / 100
    if fitting > 0:
        raise ValueError(asks + f"try {fitting:g}")
    raise ValueError(asks + "nothing is left for an engine; free the GPU (nvidia-smi shows who holds it)")


def training_bytes(policy: nn.Module) -> int:
    """What training `policy` will add to its GPU for good: its weights, and AdamW's two moments of those trained.

    Weights that are there already count no more. Gradients and activations come on top during an update, when an engine
    may sleep.
    """
    return sum(p.numel() * p.element_size() * (2 * p.requires_grad + (not p.is_cuda)) for p in policy.parameters())


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"
