"""A base in 4 bits beneath trained adapters (QLoRA: Dettmers et al., arXiv 2305.14314), by bitsandbytes."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from atrl.launch import place
from atrl.models.families import PROJECTOR, VISION_TOWERS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import BitsAndBytesConfig, PreTrainedModel

HEAD = "lm_head"
_OTHER_KERNEL = "support_avx512bf16_for_cpu"
"""What bitsandbytes calls a layer's leave to use its other kernel."""


def check_quantization(kind: str) -> None:
    """Raises ValueError, in one line, where the package that `kind` needs is not installed."""
    if kind != "none" and not find_spec("bitsandbytes"):
        raise ValueError(
            f"model.quantization={kind} needs the package bitsandbytes, which is not installed: pip install "
            "'atrl[qlora]', or use model.quantization=none"
        )


def quantized(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How transformers is to load the matrices of the language half; the rest stays in `dtype`, which products take.

    NormalFloat with its constants quantised too, as in the paper.
    """
    if kind == "none":
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # Of 4 bits as well, whatever its name; it goes by the beginnings of names.
        llm_int8_skip_modules=[*(f"model.{name}" for name in (*VISION_TOWERS, PROJECTOR)), HEAD],
    )


def own_gpu() -> dict[str, int] | None:
    """Where a process loads a model in 4 bits: on its own GPU. transformers would take the first in every process."""
    import torch

    return {"": place().local_rank} if torch.cuda.is_available() else None


def use_one_kernel(model: PreTrainedModel) -> None:
    """Compute alike in training and evaluation on a CPU, where `model` is quantised.

    bitsandbytes has another kernel there for evaluation, which rounds to bfloat16, packs the weights anew in place, and
    takes no width that is not a multiple of 64.
    """
    for module in model.modules():
        if hasattr(module, _OTHER_KERNEL):
            setattr(module, _OTHER_KERNEL, False)


def full_weight(layer: nn.Module) -> Tensor:
    """The weight of `layer` as a matrix of numbers: itself, or what its 4 bits stand for."""
    if not hasattr(layer.weight, "quant_state"):
        return layer.weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def full_weight_form(layer: nn.Module) -> tuple[torch.dtype, torch.Size]:
    """Type and shape of `full_weight`, without working it out."""
    held: Any = getattr(layer.weight, "quant_state", layer.weight)
    return held.dtype, held.shape


def full_form(model: PreTrainedModel) -> PreTrainedModel:
    """`model` itself, or of a quantised one the form that its full weights have: configuration and names alone.

    transformers saves a quantised model's own tensors, whatever it is given to save.
    """
    if getattr(model.config, "quantization_config", None) is None:
        return model
    import torch

    config = copy.deepcopy(model.config)
    del config.quantization_config
    with torch.device("meta"):
        form = type(model)(config)
    form.generation_config = model.generation_config
    return form
