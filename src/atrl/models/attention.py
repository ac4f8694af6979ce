"""Which kernel works out the attention of a model's language half, and putting another in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYOUT = ("CloneBackward0", "TransposeBackward0")
"""What transformers does to the kernel's output: heads change places with columns."""


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
    """Natural log of each row's softmax denominator, which torch's CPU kernel keeps for its backward pass.

    None where `output` has no gradient or another kernel made it. Reading what a node saved is documented with torch's
    autograd; while a block of activation checkpointing runs it must not be done, since there it runs the block again.
    """
    node = output.grad_fn
    while node is not None and node.name() in _LAYOUT:
        node = node.next_functions[0][0]
    if node is None or node.name() != "ScaledDotProductFlashAttentionForCpuBackward0":
        return None
    kept: Tensor = getattr(node, "_saved_logsumexp")  # noqa: B009  nodes have such attributes by what they saved
    return kept.detach()
