"""The interface of a policy loss, and what all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TokenLoss:
    """A loss per token, not yet averaged."""

    loss: Float[Tensor, "rollout response"]
    clipped: Bool[Tensor, "rollout response"]
    """Where a clip was active: it took the gradient away or, where only a weight is clipped, bounded it."""


class PolicyLoss(Protocol):
    """Tensors in, a loss per token out; knows nothing of batches or trainers.

    Outside `mask` the loss is 0, and what stands there, NaN included, has no effect on the rest or on any gradient.
    """

    accepts_token_credit: ClassVar[bool]
    """Whether the advantages may differ within a response."""

    def __call__(
        self,
        logprobs: Float[Tensor, "rollout response"],
        old_logprobs: Float[Tensor, "rollout response"],
        advantages: Float[Tensor, "rollout response"],
        mask: Bool[Tensor, "rollout response"],
    ) -> TokenLoss: ...


def log_ratio(
    logprobs: Float[Tensor, "rollout response"],
    old_logprobs: Float[Tensor, "rollout response"],
    mask: Bool[Tensor, "rollout response"],
) -> Float[Tensor, "rollout response"]:
    """``logprob - old logprob``, and 0 outside the mask."""
    # A selection and not a product: 0 · NaN would be NaN, in the gradient too.
    return torch.where(mask, logprobs - old_logprobs, 0.0)


def require_clip_range(low: float, high: float, *, usual: tuple[float, float]) -> None:
    """Raises ValueError for a range around 1 that is empty or reaches below a ratio of 0; `usual` is the remedy."""
    if not 0 < low < 1:
        raise ValueError(f"algorithm.loss.clip_low must be between 0 and 1, got {low}: {usual[0]} is usual")
    if high <= 0:
        raise ValueError(f"algorithm.loss.clip_high must be positive, got {high}: {usual[1]} is usual")
