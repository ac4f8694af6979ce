"""The policy's weights, parameter by parameter, for a sampler to take over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from atrl.sharding import whole

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from torch import Tensor, nn


def named_parameters(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter once, detached and whole, by its name in the transformers model.

    A parameter that is sharded over ranks (a DTensor) is put together as it is reached: every rank must go through all
    of them, and holds one at a time. LoRA adapters (peft) are merged in the same way, see `_merged`. Other parameters
    are not copied, and the policy stays as it is.

    A tied output head is left out: it is the embedding under another name, and samplers tie it themselves.

    Raises:
        ValueError: if the policy has an adapter that is no sum of weights.
    """
    if hasattr(policy, "peft_config"):
        yield from _without_adapters(policy.get_base_model())
        return
    for name, parameter in policy.named_parameters():
        yield name, whole(parameter.detach())


def _without_adapters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of `model`, in which peft has wrapped modules, under the names from before it did."""
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    seen: set[int] = set()

    def walk(module: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
        module, adapter = _unwrapped(module, name)
        for key, parameter in module.named_parameters(recurse=False):
            changed = adapter is not None and key == "weight"
            if changed and uses[id(parameter)] > 1:
                raise ValueError(
                    f"the LoRA adapter on {name} changes a weight that another layer shares (a tied output head), "
                    "which no sampler can take over: leave it out of the adapter's target modules"
                )
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            weight = whole(parameter.detach())
            if changed:
                weight = _merged(weight, adapter)
            yield f"{name}.{key}".lstrip("."), weight
        for key, child in module.named_children():
            yield from walk(child, f"{name}.{key}".lstrip("."))

    return walk(model, "")


def _unwrapped(module: nn.Module, name: str) -> tuple[nn.Module, LoraLayer | None]:
    """The module that peft put another around, and that one if it is a LoRA adapter.

    Raises:
        ValueError: if it is another kind of adapter.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):  # a copy that is trained as a whole, in the place of the original
        trained = not module.disable_adapters and module.active_adapters
        return (module.modules_to_save[module.active_adapters[0]] if trained else module.original_module), None
    if isinstance(module, LoraLayer):
        if module.lora_variant or any(module.lora_bias.values()) or hasattr(module, "parameter_name"):
            raise ValueError(
                f"the LoRA adapter on {name} is of a kind that can't be handed to a sampler as one weight: use plain "
                "LoRA on layers (use_dora=False, lora_bias=False, no target_parameters)"
            )
        return module.base_layer, module
    if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        raise ValueError(f"{name} has an adapter of the kind {type(module).__name__}: samplers take over LoRA alone")
    return module, None


@torch.no_grad()
def _merged(weight: Tensor, adapter: LoraLayer) -> Tensor:
    """W + s·B·A over the active adapters: Hu et al., arXiv 2106.09685, section 4.1; s is peft's `scaling`.

    In the order and with the rounding of peft's own `merge_and_unload`.
    """
    if adapter.disable_adapters:
        return weight
    merged = weight.clone()
    for name in adapter.active_adapters:
        if name in adapter.merged_adapters or name not in (adapter.lora_A.keys() | adapter.lora_embedding_A.keys()):
            continue
        merged += whole(adapter.get_delta_weight(name))
    return merged
