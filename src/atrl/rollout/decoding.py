"""Generating a token at a time without copying what is there already: keys and values, and these for every head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from atrl.models.attention import register_attention, set_text_attention, text_attention
from atrl.rollout.room import room_for

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


GROUPED = "atrl_grouped_sdpa"
"""What transformers calls `grouped_attention`."""

Attend = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""Layer, query, key, value and scaling → [row, new, head, width]."""

_ATTEND: ContextVar[Attend | None] = ContextVar("atrl_attend", default=None)


class GrowingLayer(DynamicLayer):
    """Keys and values in tensors with room to spare, so that a new column is written and the others stay."""

    def __init__(self) -> None:
        super().__init__()
        self._rooms: tuple[Tensor, Tensor] | None = None

    def update(
        self,
        key_states: Float[Tensor, "row head new width"],
        value_states: Float[Tensor, "row head new width"],
        *args,
        **options,
    ) -> tuple[Float[Tensor, "row head column width"], Float[Tensor, "row head column width"]]:
        """All keys and values, the new ones last."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        there, columns = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if self._rooms is None or self._rooms[0].shape[-2] < columns:
            width = room_for(there, columns)
            self._rooms = _with_room(self.keys, width), _with_room(self.values, width)
        for room, new in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., there:columns, :] = new
        self.keys, self.values = (room[..., :columns, :] for room in self._rooms)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times. Keys and values are then tensors without room, and the old ones are let go."""
        super().batch_repeat_interleave(repeats)
        self._rooms = None

    def batch_select_indices(self, indices: Int[Tensor, "chosen"]) -> None:
        """The rows of `indices` alone, likewise."""
        super().batch_select_indices(indices)
        self._rooms = None


def growing_cache(config: PretrainedConfig) -> DynamicCache:
    """transformers' cache for a model of `config`, its plain layers with room to grow."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def grouped_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "row head new width"],
    key: Float[Tensor, "row kv_head column width"],
    value: Float[Tensor, "row kv_head column width"],
    attention_mask: Bool[Tensor, "row 1 new column"] | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options,
) -> tuple[Float[Tensor, "row new head width"], None]:
    """`sdpa`, which repeats keys and values for every head, but for a single new token.

    Heads that share their keys and values (grouped-query attention, Ainslie et al., arXiv 2305.13245) then also share
    their mask, and are to the kernel as many tokens of one head. Inside `attending` that takes the kernel's place.
    """
    attend = _ATTEND.get()
    if attend is not None:
        assert attention_mask is None, "rows that have their prompts in common need no mask"
        return attend(cast("int", module.layer_idx), query, key, value, scaling or query.shape[-1] ** -0.5), None
    heads, kv_heads = query.shape[1], key.shape[1]
    if query.shape[2] != 1 or heads == kv_heads or options.get("position_bias") is not None:
        options |= {"dropout": dropout, "scaling": scaling}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    tokens = query.view(query.shape[0], kv_heads, heads // kv_heads, query.shape[3])
    output = torch.nn.functional.scaled_dot_product_attention(
        tokens, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return output.reshape(query.shape[0], 1, heads, -1), None


@contextmanager
def decoding_attention(model: PreTrainedModel) -> Iterator[None]:
    """Meanwhile the language half uses `grouped_attention` where it uses `sdpa`, looked at by a probe or not."""
    kernel = text_attention(model)
    if not kernel.endswith("sdpa"):
        yield
        return
    set_text_attention(model, register_attention(GROUPED, grouped_attention, masks_of="sdpa"))
    try:
        yield
    finally:
        set_text_attention(model, kernel)


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Meanwhile `attend` works out the attention of models that are inside `decoding_attention`."""
    token = _ATTEND.set(attend)
    try:
        yield
    finally:
        _ATTEND.reset(token)


def _with_room(tensor: Float[Tensor, "row head column width"], columns: int) -> Float[Tensor, "row head room width"]:
    room = tensor.new_empty(*tensor.shape[:-2], columns, tensor.shape[-1])
    room[..., : tensor.shape[-2], :] = tensor
    return room
