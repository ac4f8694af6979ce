"""Per-token losses → one number.

Each form divides by a total of the whole (global) batch, which is passed in, so that the sum over micro-batches and
ranks is the loss of the batch, however it was cut up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """Sizes of the global batch: what an aggregation divides by."""

    tokens: int
    """Trained tokens."""
    sequences: int
    """Rollouts with at least one trained token."""
    max_response_tokens: int
    """The limit on a response's length, a constant of the run."""


@dataclass(frozen=True, kw_only=True)
class TokenMean:
    """Every trained token of the global batch counts the same (DAPO: Yu et al., arXiv 2503.14476, section 3.3)."""

    def __call__(
        self, loss: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"], totals: BatchTotals
    ) -> Float[Tensor, ""]:
        """Σ loss / number of trained tokens of the global batch."""
        return torch.where(mask, loss, 0.0).sum() / totals.tokens


@dataclass(frozen=True, kw_only=True)
class SequenceMean:
    """Mean over a response's tokens, then over responses (GRPO: Shao et al., arXiv 2402.03300, equation 3)."""

    def __call__(
        self, loss: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"], totals: BatchTotals
    ) -> Float[Tensor, ""]:
        """Σ over rollouts of (Σ loss / its tokens) / number of rollouts of the global batch."""
        per_sequence = torch.where(mask, loss, 0.0).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
        return per_sequence.sum() / totals.sequences


@dataclass(frozen=True, kw_only=True)
class ConstantLength:
    """A response's sum over a constant, so that length earns nothing (Dr. GRPO: Liu et al., arXiv 2503.20783)."""

    def __call__(
        self, loss: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"], totals: BatchTotals
    ) -> Float[Tensor, ""]:
        """Σ loss / (number of rollouts of the global batch · the limit on a response's length)."""
        return torch.where(mask, loss, 0.0).sum() / (totals.sequences * totals.max_response_tokens)
