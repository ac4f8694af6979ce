"""The policy's weights, parameter by parameter, for a sampler to take over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from torch import Tensor, nn


@torch.no_grad()
def named_parameters(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter once, detached and whole, by its name in the transformers model.

    A parameter that is sharded over ranks (a DTensor) is put together as it is reached, so each rank must go through
    all of them, and holds one whole parameter at a time. LoRA adapters (peft) are merged in the same way: W + s·B·A
    (Hu et al., arXiv 2106.09685, equation 3, with peft's scaling s) under the name of W, and nothing in the policy
    changes. Other parameters are not copied.

    A tied output head is left out: it is the embedding under another name, and samplers tie it themselves.

    Raises:
        ValueError: if an adapter can't be written as a sum of weights.
    """
    base = policy.get_base_model() if hasattr(policy, "peft_config") else policy
    for name, module in base.named_modules():
        if hasattr(module, "lora_A"):
            _check_adapter(name, module, base)
    adapted = {f"{name}.base_layer.weight": module for name, module in base.named_modules() if hasattr(module, "lora_A")}
    for name, parameter in base.named_parameters():
        plain = _plain_name(name, base)
        if plain is None:
            continue
        weight = _whole(parameter.detach())
        if name in adapted:
            weight = _merged(weight, adapted[name])
        yield plain, weight
