"""LoRA: a frozen matrix and the product of two small ones that are trained (Hu et al., arXiv 2106.09685), by peft.

Adapters are put in place: the policy stays the transformers model that it was, so what trains, probes, divides or
exports models need not know of them, but for the few that ask `has_adapters`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from atrl.models.families import language_half
from atrl.suggest import did_you_mean

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from torch import Tensor, nn
    from transformers import PreTrainedModel

ADAPTER = "default"
"""peft's name for the one adapter that there is."""

WHOLE_MODELS = ("language", "everything")
"""Values of `Lora.modules` that are no pattern."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Which linear layers are adapted, and how: y = W·x + (alpha / rank)·B·A·x, with W frozen.

    Args:
        modules: "language": those of the language half; "everything": those of vision tower and projector too. The
            output head is in neither. Otherwise a list of names as `[q_proj, v_proj]`, wherever they are, or a regular
            expression that matches whole names (`.*language_model.*_proj`).
        rank: rows of A and columns of B.
        alpha: the product's scale, times `rank`.
        dropout: of the input to A. The sampler has none, so its log-probs differ by it.
        init: of A; B begins at zero, so that the first policy is the one that was loaded.
        seed: of A.
    """

    modules: str | list[str] = "language"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    init: Literal["kaiming", "gaussian"] = "kaiming"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a rank, scale or share that is out of range."""
        if self.rank < 1:
            raise ValueError(f"model.lora.rank must be at least 1, got {self.rank}: model/lora=none trains all weights")
        if not self.alpha > 0:
            raise ValueError(f"model.lora.alpha must be above 0, got {self.alpha}: 32 is usual")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.lora.dropout must be in [0, 1), got {self.dropout}: 0 is none")

    def layers(self, model: PreTrainedModel) -> list[str]:
        """Names of the layers of `model` that are adapted; the model may be without weights, on the meta device.

        Raises:
            ValueError: in one line, for a name or pattern that no linear layer has, or an output head whose weight is
                the embedding's too.
        """
        linear = _linear_layers(model)
        head = model.get_output_embeddings()
        if self.modules == "language":
            chosen = {id(module) for module in language_half(model).modules()}
            return [name for name, module in linear.items() if id(module) in chosen and module is not head]
        if self.modules == "everything":
            return [name for name, module in linear.items() if module is not head]
        names = _by_pattern(self.modules, linear) if isinstance(self.modules, str) else _by_name(self.modules, linear)
        for name in names:
            if linear[name] is head and head.weight is model.get_input_embeddings().weight:
                raise ValueError(
                    f"model.lora.modules names {name}, whose weight is the embedding's too (tied), so that it can't "
                    "change alone: leave it out"
                )
        return names

    def put_into(self, model: PreTrainedModel) -> None:
        """Freeze `model` and put adapters in the place of its layers; they are float32 whatever the model is.

        The global random state is left as it was.

        Raises:
            ValueError: see `layers`.
        """
        import torch
        from peft import LoraConfig, inject_adapter_in_model

        settings = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft says int, and takes any number
            lora_dropout=self.dropout,
            target_modules=self.layers(model),
            init_lora_weights=True if self.init == "kaiming" else self.init,
        )
        model.requires_grad_(False)
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # peft makes them as wide as the model


def has_adapters(model: nn.Module) -> bool:
    """Whether `model` is frozen but for adapters."""
    return hasattr(model, "peft_config")


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """`model` as it was loaded: meanwhile its adapters, if it has any, are passed by.

    peft's own switch takes the gradients off the adapters as well, and FSDP goes by what has one in the first pass.
    """
    layers = _adapted_layers(model)
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' matrices under peft's names for a file of them, in the first rank's host memory.

    Nothing on the other ranks, nor of a model without adapters; all ranks must ask.
    """
    if not has_adapters(model):
        return {}
    from peft import get_peft_model_state_dict

    from atrl import parallel
    from atrl.sharding import whole

    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensor = whole(parameter.detach())
            state |= {name: tensor.cpu()} if parallel.rank() == 0 else {}
    named = get_peft_model_state_dict(model, state, adapter_name=ADAPTER, save_embedding_layers=False)
    return {f"base_model.model.{name}": tensor.contiguous() for name, tensor in named.items()}


def _adapted_layers(model: nn.Module) -> list[LoraLayer]:
    if not has_adapters(model):
        return []
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """By name; without those of torch's own attention, which reads their weights and never calls them."""
    from torch import nn

    inside = {
        part for module in model.modules() if isinstance(module, nn.MultiheadAttention) for part in module.modules()
    }
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and module not in inside
    }


def _by_pattern(pattern: str, linear: dict[str, nn.Module]) -> list[str]:
    try:
        names = [name for name in linear if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ValueError(f"model.lora.modules={pattern} is no regular expression: {error}") from None
    if names:
        return names
    parts = _last_parts(linear)
    hint = f": write [{pattern}]" if pattern in parts else did_you_mean(pattern, [*WHOLE_MODELS, *parts])
    raise ValueError(
        f"model.lora.modules={pattern} is no whole name of a linear layer, nor a regular expression for some, as "
        f".*language_model.*q_proj{hint}"
    )


def _by_name(wanted: list[str], linear: dict[str, nn.Module]) -> list[str]:
    found = {part: [name for name in linear if name == part or name.endswith(f".{part}")] for part in wanted}
    if not found:
        raise ValueError("model.lora.modules is an empty list, which adapts nothing: language adapts the language half")
    for part, names in found.items():
        if not names:
            raise ValueError(
                f"model.lora.modules names {part!r}, and no linear layer is called so"
                f"{did_you_mean(part, _last_parts(linear)) or f': there are {_listed(linear)}'}"
            )
    return [name for name in linear if any(name in names for names in found.values())]


def _last_parts(linear: dict[str, nn.Module]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in linear})


def _listed(linear: dict[str, nn.Module]) -> str:
    return ", ".join(part for part in _last_parts(linear) if not part.isdecimal())
