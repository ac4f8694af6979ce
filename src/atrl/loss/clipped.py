"""The clipped policy-gradient loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from atrl.loss.base import TokenLoss


@dataclass(frozen=True, kw_only=True)
class ClippedLoss:
    """``-min(r·A, clip(r, 1-low, 1+high)·A)`` with the ratio ``r = exp(logprob - old logprob)``.

    PPO: Schulman et al., arXiv 1707.06347, equation 7; the upper bound of its own ("clip-higher"): DAPO, Yu et al.,
    arXiv 2503.14476, section 3.1.

    Args:
        clip_low: how far below 1 the ratio may go before its gradient stops.
        clip_high: how far above 1.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28

    def __post_init__(self) -> None:
        if not 0 < self.clip_low < 1:
            raise ValueError(f"algorithm.loss.clip_low must be between 0 and 1, got {self.clip_low}: 0.2 is usual")
        if self.clip_high <= 0:
            raise ValueError(f"algorithm.loss.clip_high must be positive, got {self.clip_high}: 0.28 is usual")

    def __call__(
        self,
        logprobs: Float[Tensor, "rollout response"],
        old_logprobs: Float[Tensor, "rollout response"],
        advantages: Float[Tensor, "rollout response"],
    ) -> TokenLoss:
        """The loss of every token, and where the clip was active (it took the gradient away)."""
        ratio = (logprobs - old_logprobs).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        unclipped_objective, clipped_objective = ratio * advantages, clipped * advantages
        return TokenLoss(
            loss=-torch.minimum(unclipped_objective, clipped_objective),
            clipped=clipped_objective < unclipped_objective,
        )
