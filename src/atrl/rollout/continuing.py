"""What the responses to a batch of prompts see of them while they are generated: the prompts' keys and values, once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atrl.models.attention import text_attention
from atrl.rollout.decoding import GROUPED, GrowingLayer, attending, growing_cache

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from transformers import DynamicCache, PreTrainedModel


class Continuation(Protocol):
    """Rows that grow by a token at a time, `group_size` of them behind each prompt, in order."""

    def next_column(self) -> AbstractContextManager[dict[str, Any]]:
        """Inside it the model may be given one more token of each row, with the inputs that it yields."""
        ...

    def keep(self, rows: Bool[Tensor, "row"]) -> None:
        """Go on with these rows only."""
        ...


class RepeatedPrompts(Continuation):
    """Each row with a copy of its prompt's keys and values: for any kind of cache and kernel."""

    def __init__(self, cache: DynamicCache, mask: Int[Tensor, "prompt column"], group_size: int) -> None:
        cache.batch_repeat_interleave(group_size)
        self._cache, self._mask = cache, mask.repeat_interleave(group_size, dim=0)

    def next_column(self) -> AbstractContextManager[dict[str, Any]]:
        """As transformers generates."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        return nullcontext({"past_key_values": self._cache, "attention_mask": self._mask})

    def keep(self, rows: Bool[Tensor, "row"]) -> None:
        """Copies what the others have."""
        self._cache.batch_select_indices(rows.nonzero().squeeze(1))
        self._mask = self._mask[rows]


class SharedPrompts(Continuation):
    """A prompt's keys and values are there once for all of its responses, and read once for each new token.

    The model's cache holds the responses alone. In its place behind the model's attention, each row attends to both:
    softmax over the columns of prompt and response together, the products with the prompt's taken for all rows of it at
    a time. With 8 responses to a prompt its share of a step's memory traffic is an eighth (Hydragen: Juravsky et al.,
    arXiv 2402.05099, section 3.1, which joins two softmaxes where we take one).
    """

    def __init__(
        self, layers: Sequence[GrowingLayer], mask: Int[Tensor, "prompt column"], group_size: int, config: Any
    ) -> None:
        self._prompts = [(layer.keys, layer.values) for layer in layers]
        self._bias = torch.where(mask.bool(), 0.0, -torch.inf)[:, None, None, :]
        self._source = torch.arange(len(mask), device=mask.device).repeat_interleave(group_size)
        self._place = Places(self._source, len(mask))
        self._cache = growing_cache(config)

    @contextmanager
    def next_column(self) -> Iterator[dict[str, Any]]:
        """Rows of equal lengths, none of them padded: they need no mask."""
        with attending(self._attend):
            yield {"past_key_values": self._cache, "attention_mask": None}

    def keep(self, rows: Bool[Tensor, "row"]) -> None:
        """The prompts stay."""
        self._cache.batch_select_indices(rows.nonzero().squeeze(1))
        self._source = self._source[rows]
        self._place = Places(self._source, len(self._bias))

    def _attend(
        self,
        layer: int,
        query: Float[Tensor, "row head 1 width"],
        key: Float[Tensor, "row kv_head column width"],
        value: Float[Tensor, "row kv_head column width"],
        scaling: float,
    ) -> Float[Tensor, "row 1 head width"]:
        """Attention of layer `layer`, `key` and `value` being the responses' own."""
        prompt_key, prompt_value = self._prompts[layer]
        rows, heads, _, width = query.shape
        # Heads that share keys and values are as many queries of one head.
        queries = query.view(rows, key.shape[1], heads // key.shape[1], width) * scaling
        before = self._place.of_rows(self._place.of_prompts(queries) @ prompt_key.mT + self._bias)
        mass = torch.cat([before, queries @ key.mT], dim=-1).softmax(dim=-1)
        before, own = mass.split([before.shape[-1], key.shape[2]], dim=-1)
        output = self._place.of_rows(self._place.of_prompts(before) @ prompt_value) + own @ value
        return output.reshape(rows, 1, heads, width)


class Places:
    """Where each row is found among those of its prompt, of which every prompt has as many places.

    Args:
        source: which prompt each row belongs to, in ascending order.
        prompts: how many there are.
    """

    def __init__(self, source: Int[Tensor, "row"], prompts: int) -> None:
        counts = source.bincount(minlength=prompts)
        self._shape = (prompts, int(counts.max()))
        first = counts.cumsum(0) - counts
        place = torch.arange(len(source), device=source.device) - first[source]
        self._index = None if bool((counts == counts[0]).all()) else source * self._shape[1] + place

    def of_prompts(self, rows: Float[Tensor, "row kv_head query n"]) -> Float[Tensor, "prompt kv_head place_query n"]:
        """The queries of a prompt's rows side by side; 0 in places that no row has."""
        if self._index is not None:
            rows = rows.new_zeros(self._shape[0] * self._shape[1], *rows.shape[1:]).index_copy_(0, self._index, rows)
        return rows.unflatten(0, self._shape).transpose(1, 2).flatten(2, 3)

    def of_rows(self, prompts: Float[Tensor, "prompt kv_head place_query n"]) -> Float[Tensor, "row kv_head query n"]:
        """The way back."""
        rows = prompts.unflatten(2, (self._shape[1], -1)).transpose(1, 2).flatten(0, 1)
        return rows if self._index is None else rows[self._index]


def continue_prompts(
    model: PreTrainedModel, cache: DynamicCache, mask: Int[Tensor, "prompt column"], group_size: int
) -> Continuation:
    """`group_size` rows behind each prompt of `cache`; these have their prompt in common where that can be.

    It can with plain layers, where a row sees all that is before it, and in float32: the products here would be rounded
    to half precision before the softmax, which kernels do not do.
    """
    plain = [layer for layer in cache.layers if isinstance(layer, GrowingLayer)]
    single = model.dtype == torch.float32 and not torch.is_autocast_enabled(mask.device.type)
    if group_size > 1 and len(plain) == len(cache.layers) and single and text_attention(model) == GROUPED:
        return SharedPrompts(plain, mask, group_size, model.config)
    return RepeatedPrompts(cache, mask, group_size)
