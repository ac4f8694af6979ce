"""The clipped policy-gradient loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.loss.base import TokenLoss, log_ratio, require_clip_range


@dataclass(frozen=True, kw_only=True)
class ClippedLoss:
    """``-min(r·A, clip(r, 1-low, 1+high)·A)`` with the ratio ``r = exp(logprob - old logprob)``.

    PPO: Schulman et al., arXiv 1707.06347, equation 7; the upper bound of its own ("clip-higher"): DAPO, Yu et al.,
    arXiv 2503.14476, section 3.1.

    Args:
        clip_low: how far below 1 the ratio may go before its gradient stops.
        clip_high: how far above 1.

    Raises:
        ValueError: if `clip_low` is not in (0, 1) or `clip_high` not positive.
    """

    accepts_token_credit = True

    clip_low: float = 0.2
    clip_high: float = 0.28

    def __post_init__(self) -> None:
        require_clip_range(self.clip_low, self.clip_high, usual=(0.2, 0.28))

    def __call__(
        self,
        logprobs: Float[Tensor, "rollout response"],
        old_logprobs: Float[Tensor, "rollout response"],
        advantages: Float[Tensor, "rollout response"],
        mask: Bool[Tensor, "rollout response"],
    ) -> TokenLoss:
        """The loss of every token, and where the clip was active (it took the gradient away)."""
        ratio = log_ratio(logprobs, old_logprobs, mask).exp()
        return clipped_loss(ratio, torch.where(mask, advantages, 0.0), self.clip_low, self.clip_high)


def clipped_loss(
    ratio: Float[Tensor, "rollout response"],
    advantages: Float[Tensor, "rollout response"],
    low: float,
    high: float,
) -> TokenLoss:
    """``-min(ratio·A, clip(ratio, 1-low, 1+high)·A)``, whatever the ratio is of."""
    unclipped_objective, clipped_objective = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return TokenLoss(
        loss=-torch.minimum(unclipped_objective, clipped_objective),
        clipped=clipped_objective < unclipped_objective,
    )
