"""The policy's weights, parameter by parameter, for a sampler to take over or a folder to hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from atrl import parallel
from atrl.autocast import without_autocast
from atrl.models.lora import ADAPTER, has_adapters
from atrl.models.quantization import full_weight, full_weight_form
from atrl.sharding import whole

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from torch import Tensor, nn


class ParameterForm(NamedTuple):
    """What a parameter is but its numbers."""

    name: str
    dtype: torch.dtype
    shape: torch.Size


def named_parameters(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter once, detached and whole, by its name in the transformers model.

    A parameter that is sharded over ranks (a DTensor) is put together as it is reached: every rank must go through all
    of them, and holds one at a time. So are a quantised weight, of which come the numbers that it stands for, and one
    with an adapter, see `_merged`. Other parameters are not copied, and the policy stays as it is.

    A tied output head is left out: it is the embedding under another name, and samplers tie it themselves.
    """
    for place in _places(policy):
        yield place.name, place.tensor()


def parameter_forms(policy: nn.Module) -> list[ParameterForm]:
    """Of each of `named_parameters`, in their order, what can be said without putting it together.

    No other rank is needed for that.
    """
    return [ParameterForm(place.name, *place.form()) for place in _places(policy)]


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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a parameter is: in `layer`, under the name `key` there. peft has wrapped the layer in `adapter`, if any."""

    name: str
    layer: nn.Module
    key: str
    adapter: LoraLayer | None

    def tensor(self) -> Tensor:
        """The parameter whole, with its adapter; every rank must ask."""
        weighs = self.key == "weight"
        weight = whole(full_weight(self.layer) if weighs else getattr(self.layer, self.key).detach())
        return _merged(weight, self.adapter) if weighs and self.adapter is not None else weight

    def form(self) -> tuple[torch.dtype, torch.Size]:
        """Of `tensor`: a divided parameter says the shape of the whole, and an adapter changes neither."""
        if self.key == "weight":
            return full_weight_form(self.layer)
        parameter = getattr(self.layer, self.key)
        return parameter.dtype, parameter.shape


def _places(model: nn.Module) -> Iterator[_Place]:
    """Of every parameter once, in torch's order, under its name from before peft wrapped layers; adapters have none."""
    adapted: tuple[type, ...] = ()
    if has_adapters(model):
        from peft.tuners.lora import LoraLayer

        adapted = (LoraLayer,)
    seen: set[int] = set()

    def walk(module: nn.Module, name: str) -> Iterator[_Place]:
        adapter = cast("LoraLayer", module) if isinstance(module, adapted) else None
        layer = module if adapter is None else cast("nn.Module", adapter.base_layer)
        for key, parameter in layer.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield _Place(f"{name}.{key}".lstrip("."), layer, key, adapter)
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
