"""Reading attention from a model that runs a fused kernel, without changing what the model computes.

transformers lets one function stand in for the attention of every layer. Ours calls the kernel that the model would
have used, returns its result untouched, and on the side computes softmax rows of the response tokens in float32, a
chunk of rows at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atrl.types import AttentionCapture, Experience

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RECORDER: ContextVar[Recorder | None] = ContextVar("atrl_attention_recorder", default=None)
_CHUNK_ELEMENTS = 1 << 24
"""Entries of one chunk of attention rows: 64 MiB of float32."""


class AttentionProbe:
    """Taps the attention of `model`'s language half for as long as a `capture` is open.

    Args:
        model: any transformers vision-language model whose attention goes through the attention interface.
        row: "predicting" reads the row that produced a token (position t-1), "own" the row of the token itself.
    """

    def __init__(self, model: PreTrainedModel, *, row: Literal["predicting", "own"] = "predicting") -> None:
        self._text_config = model.config.get_text_config()
        self._model = model
        self._kernel = self._text_config._attn_implementation
        self._image_token_id = model.config.image_token_id
        self._row = row
        _set_text_attention(model, _register_tap(self._kernel))

    def detach(self) -> None:
        """Give the model its own kernel back."""
        _set_text_attention(self._model, self._kernel)

    @contextmanager
    def capture(self, batch: Experience) -> Iterator[Recorder]:
        """Record every forward pass over `batch` inside the block; read `.result()` after it."""
        recorder = Recorder(batch, self._image_token_id, first_row=batch.prompt_length - (self._row == "predicting"))
        token = _RECORDER.set(recorder)
        try:
            yield recorder
        finally:
            _RECORDER.reset(token)


class Recorder:
    """Collects the attention of one forward pass, layer by layer."""

    def __init__(self, batch: Experience, image_token_id: int, first_row: int) -> None:
        self._batch = batch
        self._rows = slice(first_row, first_row + batch.response_length)
        self._columns, self._image_mask = image_columns(batch.input_ids, image_token_id)
        self._image: dict[int, Tensor] = {}
        self._response: dict[int, Tensor] = {}

    def read(
        self,
        layer: int,
        query: Float[Tensor, "rollout heads tokens width"],
        key: Float[Tensor, "rollout kv_heads tokens width"],
        scaling: float,
        sliding_window: int | None,
    ) -> None:
        """Add layer `layer`. Reading it twice (recomputation under checkpointing) leaves the same result."""
        query, key = query.detach().float()[:, :, self._rows], key.detach().float()
        rollouts, heads, rows, width = query.shape
        groups = key.shape[1]
        query = query.view(rollouts, groups, heads // groups, rows, width)
        image = query.new_zeros(rollouts, heads, rows, self._columns.shape[1])
        response = query.new_zeros(rollouts, rows, rows)
        chunk = max(1, _CHUNK_ELEMENTS // (rollouts * heads * key.shape[2]))
        for start in range(0, rows, chunk):
            part = slice(start, min(start + chunk, rows))
            mass = self._softmax_rows(query[..., part, :], key, part, scaling, sliding_window)
            index = self._columns[:, None, None, :].expand(-1, heads, mass.shape[2], -1)
            image[:, :, part] = mass.gather(-1, index) * self._image_mask[:, None, None, :]
            response[:, part] = mass[..., self._batch.prompt_length :].mean(dim=1)
        self._image[layer], self._response[layer] = image, response

    def _softmax_rows(
        self, query: Tensor, key: Tensor, part: slice, scaling: float, sliding_window: int | None
    ) -> Float[Tensor, "rollout heads rows tokens"]:
        scores = torch.einsum("bghrd,bgsd->bghrs", query, key).flatten(1, 2) * scaling
        row = torch.arange(self._rows.start + part.start, self._rows.start + part.stop, device=key.device)[:, None]
        column = torch.arange(key.shape[2], device=key.device)[None, :]
        causal = column <= row
        if sliding_window is not None:
            causal = causal & (column > row - sliding_window)
        allowed = causal[None] & self._batch.attention_mask.bool()[:, None, :]
        # A row that belongs to padding may be allowed nothing; it then reads 0 and not NaN.
        scores = scores.masked_fill(~allowed[:, None], torch.finfo(scores.dtype).min)
        return scores.softmax(-1) * allowed[:, None]

    def result(self) -> AttentionCapture:
        """What was read, layers in order.

        Raises:
            AssertionError: if no layer was read: the model's attention does not go through the interface.
        """
        assert self._image, "the attention probe saw no layer; does this model use transformers' attention interface?"
        layers = sorted(self._image)
        valid = self._batch.response_mask
        image = torch.stack([self._image[layer] for layer in layers], dim=1) * valid[:, None, None, :, None]
        response = torch.stack([self._response[layer] for layer in layers]).mean(dim=0)
        return AttentionCapture(image, self._image_mask, response * valid[:, :, None] * valid[:, None, :])


def image_columns(
    input_ids: Int[Tensor, "rollout tokens"], image_token_id: int
) -> tuple[Int[Tensor, "rollout image"], Bool[Tensor, "rollout image"]]:
    """Where each row's image tokens are, padded on the right to the most that any row has, and which are real."""
    is_image = input_ids == image_token_id
    count = is_image.sum(dim=1)
    order = torch.argsort(~is_image, dim=1, stable=True)[:, : int(count.max())]
    return order, torch.arange(order.shape[1], device=order.device)[None] < count[:, None]


def concatenate(captures: list[AttentionCapture]) -> AttentionCapture:
    """The captures of consecutive micro-batches as one; image columns padded to the widest."""
    width = max(capture.image.shape[-1] for capture in captures)
    pad = torch.nn.functional.pad
    return AttentionCapture(
        torch.cat([pad(capture.image, (0, width - capture.image.shape[-1])) for capture in captures]),
        torch.cat([pad(capture.image_mask, (0, width - capture.image_mask.shape[-1])) for capture in captures]),
        torch.cat([capture.response for capture in captures]),
    )


def _register_tap(kernel: str) -> str:
    """The name under which the tapped version of `kernel` is known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    def tapped(module, query, key, value, attention_mask, **options):
        output = _kernel_function(kernel, module)(module, query, key, value, attention_mask, **options)
        recorder = _RECORDER.get()
        if recorder is not None:
            scaling = options.get("scaling") or query.shape[-1] ** -0.5
            recorder.read(module.layer_idx, query, key, scaling, options.get("sliding_window"))
        return output

    name = f"atrl_probe_{kernel}"
    AttentionInterface.register(name, tapped)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[kernel])
    return name


def _kernel_function(kernel: str, module: torch.nn.Module) -> Callable:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if kernel == "eager":  # every model file brings its own
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[kernel]


def _set_text_attention(model: PreTrainedModel, implementation: str) -> None:
    key = next((name for name in model.config.sub_configs if name == "text_config"), "")
    model.set_attn_implementation({key: implementation})
