"""Rollouts by the policy itself, through transformers: no second copy of the weights and nothing to synchronise.

`model.generate` is not used: it would run the prompt once per sample, and it draws from the global random state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from atrl.data.templates import padding_id
from atrl.logprobs import process_logits
from atrl.models.policy import evaluating, picture_inputs
from atrl.rollout.base import KeptKnown, ModelHandle, Sampling, check_rollout, request_seed
from atrl.rollout.continuing import Continuation, continue_prompts
from atrl.rollout.decoding import decoding_attention, growing_cache
from atrl.rollout.truncation import collect, kept_tokens
from atrl.sharding import gathered
from atrl.types import KeptTokens, Prompt, Rollout, RolloutGroup

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from transformers import DynamicCache, PreTrainedModel

_KEEP_FINISHED = 0.25
"""Share of ended responses that stays in the batch: dropping them copies the cache of all the others."""


class TransformersSampler:
    """Samples from the live policy with one prefill a group.

    Args:
        max_batch_sequences: responses that are decoded at a time; bounds the memory of the key-value cache.
    """

    name = "transformers"
    takes_videos = True
    says_what_it_keeps: KeptKnown = "always"
    separates_groups = True

    def __init__(self, *, max_batch_sequences: int = 256) -> None:
        if max_batch_sequences < 1:
            raise ValueError(f"rollout.sampler.max_batch_sequences must be at least 1, got {max_batch_sequences}")
        self.max_batch_sequences = max_batch_sequences
        self._handle: ModelHandle | None = None
        self._version = 0

    def check(self, model_type: str) -> None:
        """Nothing can be missing."""

    def start(self, handle: ModelHandle) -> None:
        """Keep the policy of `handle`; its folder is not read."""
        self._handle = handle
        self._version = 0

    @torch.no_grad()  # inference_mode would leave tensors in the model that training can't save for backward
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: str) -> list[RolloutGroup]:
        """`group_size` responses to every prompt, in order.

        A prompt's random numbers are its own, so its responses depend on the other prompts only as far as the
        rounding of a matrix product depends on the size of the batch; with `separate_groups` not at all. With
        temperature 0 the log-probabilities are those of temperature 1.
        """
        assert self._handle is not None, "the transformers sampler was not started"
        at_a_time = 1 if sampling.separate_groups else max(1, self.max_batch_sequences // sampling.group_size)
        groups: list[RolloutGroup] = []
        with evaluating(self._handle.model), gathered(self._handle.model), decoding_attention(self._handle.model):
            for first in range(0, len(prompts), at_a_time):
                chunk = prompts[first : first + at_a_time]
                rollouts = _sample(self._handle, chunk, sampling, _uniforms(chunk, sampling, seed))
                for index, prompt in enumerate(chunk):
                    members = rollouts[index * sampling.group_size : (index + 1) * sampling.group_size]
                    groups.append(rollout_group(self._handle, prompt, members, self._version))
        return groups

    def rest(self) -> None:
        """Nothing is held that could be given back."""

    def update_weights(self, parameters: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Note the version; the sampler generates with the very parameters that were trained."""
        self._version = version

    def close(self) -> None:
        """Let go of the policy."""
        self._handle = None


def end_token_ids(handle: ModelHandle) -> tuple[int, ...]:
    """The tokens that end a response, for every sampler: the tokenizer's, the generation config's, the chat template's.

    Raises:
        ValueError: if the checkpoint names none, because then no response could ever finish.
    """
    configured = handle.model.generation_config.eos_token_id if handle.model.generation_config else None
    ids = set(configured if isinstance(configured, Sequence) else (configured,)) | {handle.tokenizer.eos_token_id}
    ids = (ids | set(handle.turn_end_ids)) - {None}
    if not ids:
        raise ValueError(
            f"{handle.folder}: no end-of-turn token: set eos_token_id in its generation_config.json or tokenizer"
        )
    return tuple(sorted(ids))


def rollout_group(handle: ModelHandle, prompt: Prompt, rollouts: Sequence[Rollout], version: int) -> RolloutGroup:
    """The checked `rollouts` of one prompt with their texts, for every sampler."""
    checked = [check_rollout(rollout, prompt, handle.banned_ids) for rollout in rollouts]
    texts = handle.tokenizer.batch_decode(
        [rollout.token_ids for rollout in checked], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return RolloutGroup(prompt=prompt, rollouts=checked, texts=texts, policy_version=version)


def processed_logprobs(
    logits: Float[Tensor, "row vocabulary"], banned_ids: Sequence[int], temperature: float
) -> Float[Tensor, "row vocabulary"]:
    """float32 log-probabilities of what is sampled from: softmax(logits / temperature) without the banned tokens."""
    return process_logits(logits, temperature=temperature or 1.0, banned_ids=banned_ids).log_softmax(dim=-1)


def draw(logprobs: Float[Tensor, "row vocabulary"], uniforms: Float[Tensor, "row"]) -> Int[Tensor, "row"]:
    """One token a row by inverting the cumulative distribution at `uniforms` in [0, 1).

    Summed in float64, because a float32 sum over a large vocabulary loses the tail. A token of probability 0 can't be
    drawn: the token is the first whose cumulative probability *exceeds* the threshold, and there it has grown.
    """
    cumulative = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
    threshold = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1)


def _uniforms(prompts: Sequence[Prompt], sampling: Sampling, seed: str) -> Float[Tensor, "rollout token"]:
    """All random numbers of a chunk: every prompt's come from its own generator, on the CPU for every device."""
    shape = (sampling.group_size, sampling.max_response_tokens)
    return torch.cat(
        [
            torch.rand(
                shape,
                dtype=torch.float64,
                generator=torch.Generator().manual_seed(request_seed(seed, prompt.key)),
            )
            for prompt in prompts
        ]
    )


def _sample(
    handle: ModelHandle, prompts: Sequence[Prompt], sampling: Sampling, uniforms: Float[Tensor, "rollout token"]
) -> list[Rollout]:
    model, ends = handle.model, torch.tensor(end_token_ids(handle), device=handle.model.device)
    logits, cache, mask, positions = _prefill(handle, prompts)
    rows = continue_prompts(model, cache, mask, sampling.group_size)
    logits, positions = (tensor.repeat_interleave(sampling.group_size, dim=0) for tensor in (logits, positions))
    uniforms = uniforms.to(model.device)
    tokens = torch.full(uniforms.shape, -1, device=model.device)
    logprobs = torch.zeros(uniforms.shape, device=model.device)
    kept: list[list[Tensor]] = [[] for _ in uniforms]
    batch = torch.arange(len(uniforms), device=model.device)  # which rollout each row of the batch is
    going = torch.ones_like(batch, dtype=torch.bool)  # which of these have not ended
    for step in range(sampling.max_response_tokens):
        scores = processed_logprobs(logits, handle.banned_ids, sampling.temperature)
        if sampling.truncates:
            left = kept_tokens(scores, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p)
            scores = scores.masked_fill(~left, -torch.inf).log_softmax(dim=-1)
            for row in going.nonzero().squeeze(1).tolist():
                kept[batch[row]].append(left[row].nonzero().squeeze(1))
        token = draw(scores, uniforms[batch, step]) if sampling.temperature else scores.argmax(dim=-1)
        tokens[batch[going], step] = token[going]
        logprobs[batch[going], step] = scores.gather(1, token[:, None]).squeeze(1)[going]
        going = going & ~torch.isin(token, ends)
        if step + 1 == sampling.max_response_tokens or not going.any():
            break
        if going.sum() < (1 - _KEEP_FINISHED) * len(going):
            rows.keep(going)
            batch, token, positions = (tensor[going] for tensor in (batch, token, positions))
            going = going[going]
        logits = _decode(model, token, rows, positions + step)
    found = collect(kept) if sampling.truncates else [None] * len(kept)
    return [_rollout(*row, ends.tolist()) for row in zip(tokens.tolist(), logprobs.tolist(), found, strict=True)]


def _rollout(tokens: list[int], logprobs: list[float], kept: KeptTokens | None, ends: Sequence[int]) -> Rollout:
    length = tokens.index(-1) if -1 in tokens else len(tokens)
    finished = tokens[length - 1] in ends
    return Rollout(token_ids=tokens[:length], logprobs=logprobs[:length], finished=finished, kept=kept)


def _prefill(
    handle: ModelHandle, prompts: Sequence[Prompt]
) -> tuple[Float[Tensor, "prompt vocabulary"], DynamicCache, Int[Tensor, "prompt column"], Int[Tensor, "prompt"]]:
    """One forward over the prompts, padded on the left: next logits, cache, mask, the next token's position."""
    model = handle.model
    length = max(len(prompt.token_ids) for prompt in prompts)
    padding = padding_id(handle.tokenizer, handle.banned_ids)
    ids = torch.tensor([[padding] * (length - len(p.token_ids)) + p.token_ids for p in prompts])
    mask = torch.tensor([[0] * (length - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts])
    ids, mask = ids.to(model.device), mask.to(model.device)
    pixels = [{name: tensor.to(model.device) for name, tensor in prompt.pixels.items()} for prompt in prompts]
    inputs = picture_inputs(model, ids, mask, pixels)
    positions = inputs["position_ids"]
    cache = growing_cache(model.config)
    logits = model(
        input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs
    ).logits[:, -1]
    # The last column is text, whose position is the same in all dimensions, and in no row padding.
    last = positions[0] if positions.ndim == 3 else positions
    return logits, cache, mask, last[:, -1] + 1


def _decode(
    model: PreTrainedModel,
    token: Int[Tensor, "row"],
    rows: Continuation,
    position: Int[Tensor, "row"],
) -> Float[Tensor, "row vocabulary"]:
    """The logits that follow `token`; a text token's position is the same in all dimensions of multimodal RoPE."""
    positions = position[:, None]
    if hasattr(model.base_model, "get_rope_index"):
        positions = positions.expand(3, -1, -1)
    with rows.next_column() as inputs:
        return model(input_ids=token[:, None], position_ids=positions, use_cache=True, **inputs).logits[:, -1]
