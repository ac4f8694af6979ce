"""Which kernel works out the attention of a model's language half, and putting another in its place."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Attention = Literal["sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"]
"""transformers' names of the kernels that a policy may have."""

_PACKAGES = {
    "flash_attention_2": ("flash-attn", "flash_attn"),
    "flash_attention_3": ("flash-attn-3", "flash_attn_interface"),
}
"""By kernel the package, and its module."""

_LAYOUT = ("CloneBackward0", "TransposeBackward0")
"""What transformers does to the kernel's output: heads change places with columns."""

_KEPT = {
    "ScaledDotProductFlashAttentionForCpuBackward0": "_saved_logsumexp",
    "ScaledDotProductFlashAttentionBackward0": "_saved_logsumexp",
    "ScaledDotProductEfficientAttentionBackward0": "_saved_log_sumexp",
    "ScaledDotProductCudnnAttentionBackward0": "_saved_logsumexp",
}
"""Which of torch's kernels keep the log-sum-exp of each row for their backward pass, and as what."""


def check_installed(kernel: str) -> None:
    """Raises ValueError, in one line, where the package of `kernel` is not installed."""
    package, module = _PACKAGES.get(kernel, (None, None))
    # transformers fetches the kernel from the hub where `kernels` is installed.
    if module is not None and not (find_spec(module) or find_spec("kernels")):
        raise ValueError(f"model.attention={kernel} needs the package {package}, which is not installed: use sdpa")


def check_flex(model: PreTrainedModel) -> None:
    """Raises ValueError, in one line, where flex_attention can't train `model`, which may be without weights."""
    import torch

    halves = [part for part in model.modules() if hasattr(part, "_supports_flex_attn")]
    lacking = sorted({type(part).__name__ for part in halves if not part._supports_flex_attn})
    if lacking:
        raise ValueError(f"model.attention=flex_attention is not known to transformers' {lacking[0]}: use sdpa")
    if not torch.cuda.is_available():
        raise ValueError("model.attention=flex_attention has gradients on a GPU only, and none is here: use sdpa")


def text_attention(model: PreTrainedModel) -> str:
    """What transformers calls the kernel of the language half."""
    return model.config.get_text_config()._attn_implementation


def set_text_attention(model: PreTrainedModel, kernel: str) -> None:
    """Have the language half use `kernel`; the vision tower keeps its own."""
    key = next((name for name in model.config.sub_configs if name == "text_config"), "")
    model.set_attn_implementation({key: kernel})


def register_attention(name: str, function: Callable, *, masks_of: str) -> str:
    """Make `function` known to transformers as `name`, with masks as the kernel `masks_of` gets them; gives `name`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[masks_of])
    return name


def kept_logsumexp(output: Float[Tensor, "row column heads width"]) -> Float[Tensor, "row heads column"] | None:
    """Natural log of each row's softmax denominator, which torch's fused kernels keep for their backward pass.

    None where `output` has no gradient or another kernel made it. Reading what a node saved is documented with torch's
    autograd; while a block of activation checkpointing runs it must not be done, since there it runs the block again.
    """
    node = output.grad_fn
    while node is not None and node.name() in _LAYOUT:
        node = node.next_functions[0][0]
    name = None if node is None else _KEPT.get(node.name())
    if name is None:
        return None
    kept: Tensor = getattr(node, name).detach()
    kept = kept.squeeze(-1) if kept.ndim == 4 else kept  # cuDNN's ends in a dimension of 1
    return kept[:, :, : output.shape[1]]  # on a GPU rows may be filled up to a multiple of 32
