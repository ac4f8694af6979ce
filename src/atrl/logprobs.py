"""Logits → log-probabilities of the sampled tokens, under the distribution that they were sampled from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from atrl.types import KeptTokens


def process_logits(
    logits: Float[Tensor, "*batch vocabulary"], *, temperature: float, banned_ids: Sequence[int] = ()
) -> Float[Tensor, "*batch vocabulary"]:
    """The logits of the sampling distribution, in float32: divided by the temperature, banned tokens at -inf.

    A sampler draws from exactly this distribution; comparing log-probs of anything else is the commonest cause of
    sampler-trainer mismatch.

    Raises:
        ValueError: if `temperature` is not positive: greedy decoding has no log-probs to train on.
    """
    if temperature <= 0:
        raise ValueError(f"rollout.temperature must be positive for training, got {temperature}")
    processed = logits.float()
    if temperature != 1.0:
        processed = processed / temperature
    if banned_ids:
        index = torch.tensor(tuple(banned_ids), device=logits.device)
        processed = processed.index_fill(-1, index, float("-inf"))
    return processed


def keep_only(
    processed: Float[Tensor, "rollout response vocabulary"], kept: Sequence[KeptTokens]
) -> Float[Tensor, "rollout response vocabulary"]:
    """-inf for the tokens that the sampler had left out: log-probs are then over what it could draw.

    The set is the sampler's own, not worked out again: the trainer's rounding, and the policy after an update, would
    keep other tokens, and then perhaps not the one that was drawn. DeepSeek-V3.2, arXiv 2512.02556, section 3.1, "Keep
    Sampling Mask". Padding is left as it is.
    """
    allowed = torch.ones(processed.shape, dtype=torch.bool)
    for row, tokens in enumerate(kept):
        length = len(tokens.counts)
        allowed[row, :length] = False
        allowed[row, torch.arange(length).repeat_interleave(tokens.counts), tokens.ids.long()] = True
    return processed.masked_fill(~allowed.to(processed.device), -torch.inf)


def token_logprobs(
    processed: Float[Tensor, "rollout response vocabulary"], token_ids: Int[Tensor, "rollout response"]
) -> Float[Tensor, "rollout response"]:
    """log π(token): the chosen logit less the log-sum-exp of its row."""
    chosen = processed.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return chosen - processed.logsumexp(-1)


def token_entropy(processed: Float[Tensor, "rollout response vocabulary"]) -> Float[Tensor, "rollout response"]:
    """Entropy −Σ p·log p in nats; a banned token has p = 0 and adds nothing."""
    logprobs = processed.log_softmax(-1)
    return -(logprobs.exp() * logprobs.clamp_min(torch.finfo(logprobs.dtype).min)).sum(-1)


def token_divergence(
    processed: Float[Tensor, "rollout response vocabulary"], other: Float[Tensor, "rollout response vocabulary"]
) -> Float[Tensor, "rollout response"]:
    """KL(p ‖ q) = Σ p·(log p − log q) in nats, p from `processed` and q from `other`; a banned token adds nothing."""
    p, q = processed.log_softmax(-1), other.log_softmax(-1)
    # Where both are -inf the difference is NaN; p is 0 there.
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)
