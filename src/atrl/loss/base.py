"""The interface of a policy loss, and what all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

PerToken = Float[Tensor, "rollout response"]
"""A number for each response token."""
TokenMask = Bool[Tensor, "rollout response"]
"""Which of them are trained."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenLoss:
    """A loss per token, not yet averaged."""

    loss: PerToken
    clipped: TokenMask
    """Where a clip was active: it took the gradient away or, where only a weight is clipped, bounded it."""


class PolicyLoss(Protocol):
    """Tensors in, a loss per token out; knows nothing of batches or trainers.

    Outside `mask` the loss is 0, and what stands there, NaN included, has no effect on the rest or on any gradient.
    """

    accepts_token_credit: ClassVar[bool]
    """Whether the advantages may differ within a response."""

    def __call__(
        self, logprobs: PerToken, old_logprobs: PerToken, advantages: PerToken, mask: TokenMask
    ) -> TokenLoss: ...


def log_ratio(logprobs: PerToken, old_logprobs: PerToken, mask: TokenMask) -> PerToken:
    """``logprob - old logprob``, and 0 outside the mask."""
    # A selection and not a product: 0 · NaN would be NaN, in the gradient too.
    return torch.where(mask, logprobs - old_logprobs, 0.0)


def require_positive(loss: object, *options: str) -> None:
    """Raises ValueError for the first of a loss's `options` that is not positive; its default is the remedy."""
    for option in options:
        value, usual = getattr(loss, option), getattr(type(loss), option)
        if value <= 0:
            raise ValueError(f"algorithm.loss.{option} must be positive, got {value}: {usual} is usual")
