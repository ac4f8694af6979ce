"""The clipped policy-gradient loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from atrl.loss.base import PerToken, TokenLoss, TokenMask, log_ratio, require_positive


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
        if not 0 < self.clip_low < 1:
            usual = type(self).clip_low
            raise ValueError(f"algorithm.loss.clip_low must be between 0 and 1, got {self.clip_low}: {usual} is usual")
        require_positive(self, "clip_high")

    def __call__(self, logprobs: PerToken, old_logprobs: PerToken, advantages: PerToken, mask: TokenMask) -> TokenLoss:
        """The loss of every token, and where the clip was active (it took the gradient away)."""
        ratio, advantages = self.ratio(logprobs, old_logprobs, mask), torch.where(mask, advantages, 0.0)
        unclipped = ratio * advantages
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * advantages
        return TokenLoss(loss=-torch.minimum(unclipped, clipped), clipped=clipped < unclipped)

    def ratio(self, logprobs: PerToken, old_logprobs: PerToken, mask: TokenMask) -> PerToken:
        """What is clipped: each token's own ratio."""
        return log_ratio(logprobs, old_logprobs, mask).exp()
