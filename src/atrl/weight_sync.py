"""The policy's weights, parameter by parameter, for a sampler to take over or a folder to hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from atrl import parallel
from atrl.autocast import without_autocast
from atrl.models.lora import ADAPTER, has_adapters
from atrl.models.quantization import full_weight
from atrl.sharding import whole

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from torch import Tensor, nn


def named_parameters(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter once, detached and whole, by its name in the transformers model.

    A parameter that is sharded over ranks (a DTensor) is put together as it is reached: every rank must go through all
    of them, and holds one at a time. So are a quantised weight, of which come the numbers that it stands for, and one
    with an adapter, see `_merged`. Other parameters are not copied, and the policy stays as it is.

    A tied output head is left out: it is the embedding under another name, and samplers tie it themselves.
    """
    if has_adapters(policy):
        yield from _without_adapters(policy)
        return
    for name, parameter in policy.named_parameters():
        yield name, whole(parameter.detach())


def whole_state(policy: nn.Module) -> dict[str, Tensor]:
    """What `named_parameters` yields, and the buffers that belong to a checkpoint, in the first rank's host memory.

    Nothing on the others; all ranks must ask.
    """
    first = parallel.rank() == 0
    state = {}
    for name, tensor in named_parameters(policy):
        if first:
            state[name] = tensor.cpu()
    if first:
        kept = policy.state_dict(keep_vars=True).keys()
        state |= {name: buffer.detach().cpu() for name, buffer in policy.named_buffers() if name in kept}
    return state


def _without_adapters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of `model`, in which peft has wrapped layers, under the names from before it did."""
    from peft.tuners.lora import LoraLayer

    seen: set[int] = set()

    def walk(module: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
        adapter = module if isinstance(module, LoraLayer) else None
        layer = module if adapter is None else adapter.base_layer
        for key, parameter in layer.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            weight = whole(full_weight(layer) if key == "weight" else parameter.detach())
            if adapter is not None and key == "weight":
                weight = _merged(weight, adapter)
            yield f"{name}.{key}".lstrip("."), weight
        for key, child in layer.named_children():
            yield from walk(child, f"{name}.{key}".lstrip("."))

    return walk(model, "")


@torch.no_grad()
def _merged(weight: Tensor, adapter: LoraLayer) -> Tensor:
    """W + (alpha / rank)·B·A: Hu et al., arXiv 2106.09685, section 4.1. W alone while adapters are passed by.

    The product is float32, also inside a step's autocast, and the sum is rounded to W's precision, as in peft's own
    `merge_and_unload`.
    """
    if adapter.disable_adapters:
        return weight
    merged = weight.clone()
    with without_autocast():
        merged += whole(adapter.get_delta_weight(ADAPTER))  # type: ignore[attr-defined]  # only its subclasses name it
    return merged
