"""Logits → the distribution that tokens were sampled from, and its entropy and divergence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from atrl.types import KeptTokens


def process_logits(
    logits: Float[Tensor, "*batch vocabulary"], *, temperature: float, banned_ids: Sequence[int] = ()
) -> Float[Tensor, "*batch vocabulary"]:
    """The logits of the sampling distribution, in float32 or more: over the temperature, banned tokens at -inf.

    A sampler draws from exactly this distribution; comparing log-probs of anything else is the commonest cause of
    sampler-trainer mismatch.

    Raises:
        ValueError: if `temperature` is not positive: greedy decoding has no log-probs to train on.
    """
    if temperature <= 0:
        raise ValueError(f"rollout.temperature must be positive for training, got {temperature}")
    processed = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        processed = processed / temperature
    if banned_ids:
        index = torch.tensor(tuple(banned_ids), device=logits.device)
        fill = processed.index_fill if processed is logits else processed.index_fill_  # the caller's stay as they are
        processed = fill(-1, index, float("-inf"))
    return processed


def keep_only(processed: Float[Tensor, "token vocabulary"], kept: KeptTokens) -> Float[Tensor, "token vocabulary"]:
    """-inf for the tokens that the sampler had left out: log-probs are then over what it could draw.

    The set is the sampler's own, not worked out again: the trainer's rounding, and the policy after an update, would
    keep other tokens, and then perhaps not the one that was drawn. DeepSeek-V3.2, arXiv 2512.02556, section 3.1, "Keep
    Sampling Mask".
    """
    device = processed.device
    row = torch.arange(len(processed)).repeat_interleave(kept.counts)
    left_out = torch.ones(processed.shape, dtype=torch.bool, device=device)
    left_out[row.to(device), kept.ids.long().to(device)] = False
    return processed.masked_fill(left_out, -torch.inf)


def token_entropy(
    log_p: Float[Tensor, "token vocabulary"], p: Float[Tensor, "token vocabulary"]
) -> Float[Tensor, "token"]:
    """Entropy −Σ p·log p in nats; a banned token has p = 0 and adds nothing.

    `log_p` is overwritten: over a large vocabulary another tensor of its size would be the peak of memory.
    """
    # 0 · -inf would be NaN. torch.special.entr(p) minds that too, but takes the logarithm again, at 2.5 times the cost.
    return log_p.clamp_(min=torch.finfo(log_p.dtype).min).mul_(p).sum(-1).neg_()


def token_divergence(
    log_p: Float[Tensor, "token vocabulary"], log_q: Float[Tensor, "token vocabulary"]
) -> Float[Tensor, "token"]:
    """KL(p ‖ q) = Σ p·(log p − log q) in nats; a banned token adds nothing."""
    # Where both are -inf the difference is NaN; p is 0 there.
    return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0).sum(-1)
