"""A model whose parameters, gradients and optimizer states are divided among the ranks (FSDP2).

Sharded models are called in step: every rank runs each block as often as the others, or they wait for each other for
ever. The training step sees to that (`Experience.stand_in`, equally many micro-batches); whoever calls a model as often
as it likes does so within `gathered`.

FSDP: Zhao et al., arXiv 2304.11277; ZeRO: Rajbhandari et al., arXiv 1910.02054.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

ENCODERS = ("get_image_features", "get_video_features")
"""Methods of a model that are called from outside and run its vision tower."""
_GATHERED: WeakSet[nn.Module] = WeakSet()


def is_sharded(model: nn.Module) -> bool:
    """Whether `model` is divided among the ranks."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How a model is divided.

    Args:
        compute_dtype: of gathered parameters and of activations; parameters, gradients and optimizer states stay
            float32. None computes in float32 as well.
        offload: keep this rank's part in host memory between uses.
    """

    compute_dtype: torch.dtype | None = None
    offload: bool = False


def shard(model: PreTrainedModel, mesh: DeviceMesh, sharding: Sharding) -> None:
    """Divide `model` over `mesh`, in place: a unit for each transformer block, and one for the rest.

    A unit's parameters are gathered before it runs and divided again after. Gradients are added up over the ranks and
    not averaged, because a rank's loss is its share of the global batch's.
    """
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    precision = MixedPrecisionPolicy(
        param_dtype=sharding.compute_dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=sharding.compute_dtype is not None,
    )
    offload = CPUOffloadPolicy() if sharding.offload else OffloadPolicy()
    for part in [*_blocks(model), model]:
        unit = fully_shard(part, mesh=mesh, mp_policy=precision, offload_policy=offload)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo knows no sum with a factor
    for name in ENCODERS:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Every rank holds the whole of `model` meanwhile, and may run it without gradients as often as it likes.

    All ranks enter and leave; within, entering again takes no other rank. A model that is not sharded is left as it is.
    """
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule) or model in _GATHERED:
        yield
        return
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    model.set_reshard_after_forward(False)
    _GATHERED.add(model)
    for unit in units:
        unit.unshard()
    try:
        yield
    finally:
        _GATHERED.remove(model)
        model.set_reshard_after_forward(True)
        for unit in units:
            unit.reshard()


def whole(tensor: Tensor) -> Tensor:
    """`tensor` itself, or all ranks' parts of it put together; then every rank must ask."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """`tensor` itself, or this rank's part of it."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The blocks that transformers names as the ones never to be torn apart, those of the vision tower included."""
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return [module for module in model.modules() if type(module).__name__ in names]
