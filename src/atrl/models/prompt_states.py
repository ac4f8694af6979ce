"""A group's prompt goes through the model once, however many responses it has.

All responses to a prompt see the same keys and values of it, in every layer. So each prompt of a batch is run alone
first, up to its last token but one, and its keys and values are kept. The responses, each behind the prompt's last
token, then run with these before their own. That is how a model generates; here gradients flow through both passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from atrl.models.policy import picture_inputs, token_kinds, vision_in_step
from atrl.sharding import is_sharded
from atrl.types import Experience

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ALONE: ContextVar[bool] = ContextVar("atrl_prompts_alone", default=False)


def prompts_alone() -> bool:
    """Whether the pass under way is over prompts alone, with no response in it to read attention of."""
    return _ALONE.get()


class _Kept(DynamicLayer):
    """Keeps the keys and values of the prompts. A block that is run again for its gradients keeps the same again."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **options) -> tuple[Tensor, Tensor]:
        self.is_initialized = True
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        """None of them is there before the pass."""
        return 0


class _Before(DynamicLayer):
    """Puts the keys and values of each rollout's prompt before those of its response, and keeps nothing."""

    def __init__(self, prompts: _Kept, source: Int[Tensor, "rollout"]) -> None:
        super().__init__()
        self.keys, self.values = prompts.keys, prompts.values
        self.is_initialized, self._source, self.read = True, source, False

    def update(self, key_states: Tensor, value_states: Tensor, *args, **options) -> tuple[Tensor, Tensor]:
        self.read = True
        pairs = ((self.keys, key_states), (self.values, value_states))
        keys, values = (torch.cat([kept.index_select(0, self._source), own], dim=-2) for kept, own in pairs)
        return keys, values


@dataclass(frozen=True, slots=True, eq=False)
class PromptStates:
    """What running each prompt of a batch once left behind."""

    source: Int[Tensor, "rollout"]
    """Which prompt each rollout answers."""
    layers: list[_Kept]
    """Keys and values by layer, [prompt, kv_heads, prompt columns - 1, width]."""
    positions: Int[Tensor, "*axis prompt"]
    """Of the last token of each prompt, from which the response counts on."""
    nothing: Float[Tensor, ""] | None
    """Of a sharded model 0, by way of all that the pass computed: the last block's output must have a gradient too, or
    its parameters are not there when those of its keys and values come."""

    def response_positions(self, columns: int) -> Int[Tensor, "*axis rollout columns"]:
        """Where a prompt's last token and the `columns` - 1 after it stand: text, one after the other on each axis."""
        last = self.positions.index_select(-1, self.source)
        return last[..., None] + torch.arange(columns, device=last.device)


def run_prompts(model: PreTrainedModel, batch: Experience) -> PromptStates:
    """Run each prompt of `batch` once, with its pictures.

    Raises:
        AssertionError: if a prompt ends in a picture, or the model keeps no keys and values.
    """
    first, source = distinct_prompts(batch.input_ids[:, : batch.prompt_length], batch.pixels)
    ids, mask = (tensor[first, : batch.prompt_length] for tensor in (batch.input_ids, batch.attention_mask))
    with vision_in_step(model, batch):
        inputs = picture_inputs(model, ids, mask, [batch.pixels[row] for row in first])
        positions = inputs.pop("position_ids")
        kinds = {name: inputs.pop(name) for name in token_kinds(model, ids) if name in inputs}
        assert not any(kind[:, -1].any() for kind in kinds.values()), "a prompt must end in text, this one in a picture"
        kept = [_Kept() for _ in range(model.config.get_text_config().num_hidden_layers)]
        with _unread(), _cached_in_checkpoints(model):
            output = model(
                input_ids=ids[:, :-1],
                attention_mask=mask[:, :-1],
                position_ids=positions[..., :-1],
                past_key_values=Cache(layers=list(kept)),
                use_cache=False,
                logits_to_keep=1,
                **inputs,
                **{name: kind[:, :-1] for name, kind in kinds.items()},
            )
    assert all(layer.is_initialized for layer in kept), (
        "a layer of the model left no keys and values: set optimizer.share_prompts=false, or, if "
        "trainer.activation_checkpointing is on, use transformers 5.19 or later"
    )
    nothing = 0.0 * output.logits.float().sum() if is_sharded(model) else None
    return PromptStates(source, kept, positions[..., -1], nothing)


def logits_after(
    model: PreTrainedModel, batch: Experience, prompts: PromptStates
) -> Float[Tensor, "rollout response vocabulary"]:
    """What `response_logits` gives of `batch`, by what running its prompts left.

    Raises:
        AssertionError: if the model did not look at the prompts' keys and values in every layer.
    """
    ids = batch.input_ids[:, batch.prompt_length - 1 :]
    before = [_Before(layer, prompts.source) for layer in prompts.layers]
    with _cached_in_checkpoints(model):
        output = model(
            input_ids=ids,
            attention_mask=batch.attention_mask,
            position_ids=prompts.response_positions(ids.shape[1]),
            past_key_values=Cache(layers=list(before)),
            use_cache=False,
            **token_kinds(model, ids),
        )
    assert all(layer.read for layer in before), "a layer of the model did not look at the prompts' states"
    logits = output.logits[:, :-1]
    return logits if prompts.nothing is None else logits + prompts.nothing


def distinct_prompts(
    input_ids: Int[Tensor, "rollout columns"], pixels: Sequence[dict[str, Tensor]]
) -> tuple[list[int], Int[Tensor, "rollout"]]:
    """The first rollout of each prompt, in order, and which of these prompts each rollout answers.

    Prompts are one if their tokens are and their pictures are the very same tensors.
    """
    keys = [(id(entry) if entry else None, tuple(row)) for entry, row in zip(pixels, input_ids.tolist(), strict=True)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    source = torch.tensor([numbers[key] for key in keys], device=input_ids.device)
    return [keys.index(key) for key in numbers], source


@contextmanager
def _unread() -> Iterator[None]:
    """Meanwhile `prompts_alone`."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


@contextmanager
def _cached_in_checkpoints(model: PreTrainedModel) -> Iterator[None]:
    """Layers whose activations are computed again keep their cache, which transformers takes from them otherwise.

    It does so because a cache would grow by the second time; ours do not.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer._can_checkpoint_with_cache = True
    try:
        yield
    finally:
        for layer in layers:
            del layer._can_checkpoint_with_cache
