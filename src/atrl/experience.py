"""Rollouts → tensors, and tensors → micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from atrl.types import Experience, Prompt, RolloutGroup


def collate(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[int]],
    *,
    pad_id: int,
    device: torch.device | str = "cpu",
) -> tuple[Int[Tensor, "rollout tokens"], Int[Tensor, "rollout tokens"], Bool[Tensor, "rollout response"]]:
    """`input_ids`, `attention_mask` and `response_mask`; prompts padded on the left and responses on the right."""
    prompt_length = max(len(prompt.token_ids) for prompt in prompts)
    response_length = max(len(response) for response in responses)
    shape = (len(prompts), prompt_length + response_length)
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        start, end = prompt_length - len(prompt.token_ids), prompt_length + len(response)
        input_ids[row, start:end] = torch.tensor([*prompt.token_ids, *response])
        attention_mask[row, start:end] = 1
    response_mask = attention_mask[:, prompt_length:].bool()
    return input_ids.to(device), attention_mask.to(device), response_mask.to(device)


def build_experience(
    groups: Sequence[RolloutGroup], *, pad_id: int, device: torch.device | str = "cpu", seed: str = ""
) -> Experience:
    """All rollouts of `groups`, in order, as one padded batch; a group's picture tensors are shared, not copied.

    `seed` names the step; together with problem and sample it is the rollout's key.
    """
    prompts = [group.prompt for group in groups for _ in group.rollouts]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    input_ids, attention_mask, response_mask = collate(
        prompts, [rollout.token_ids for rollout in rollouts], pad_id=pad_id, device=device
    )
    sampler_logprobs = torch.zeros(response_mask.shape, device=device)
    for row, rollout in enumerate(rollouts):
        sampler_logprobs[row, : len(rollout.logprobs)] = torch.tensor(rollout.logprobs)
    pixels = {id(group): {name: tensor.to(device) for name, tensor in group.prompt.pixels.items()} for group in groups}
    return Experience(
        input_ids,
        attention_mask,
        response_mask,
        pixels=[pixels[id(group)] for group in groups for _ in group.rollouts],
        sampler_logprobs=sampler_logprobs,
        keys=[f"{seed}/{group.prompt.key}/{sample}" for group in groups for sample in range(len(group.rollouts))],
        kept=None if rollouts[0].kept is None else [rollout.kept for rollout in rollouts],
    )


def micro_batches(size: int, micro_batch_size: int) -> Iterator[slice]:
    """Consecutive slices of at most `micro_batch_size` rollouts that cover all `size` of them."""
    for start in range(0, size, micro_batch_size):
        yield slice(start, min(start + micro_batch_size, size))
