"""Which kernel works out the attention of a model's language half, and putting another in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
