"""CISPO: the importance weight is clipped, never the token."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from atrl.loss.base import PerToken, TokenLoss, TokenMask, log_ratio, require_positive


@dataclass(frozen=True, kw_only=True)
class ClippedWeightLoss:
    """``-sg(clip(r, 1-low, 1+high))·A·logprob`` with ``r = exp(logprob - old logprob)``; sg stops the gradient.

    CISPO: MiniMax-M1, arXiv 2506.13585, section 3.1, equations 4 and 5. The gradient by the log-prob is ``-w·A`` with
    the clipped weight w, so a rare token that has moved far still learns. MiniMax-M1 bounds the weight from above
    only and doesn't say by how much; 5, which is ``1 + clip_high`` here, is ScaleRL's (Khatri et al., arXiv
    2510.13786).

    Args:
        clip_low: how far below 1 the weight may go; from 1 on there is no lower bound, since a ratio is positive.
        clip_high: how far above 1.

    Raises:
        ValueError: if a bound is not positive.
    """

    accepts_token_credit = True

    clip_low: float = 1.0
    clip_high: float = 4.0

    def __post_init__(self) -> None:
        require_positive(self, "clip_low", "clip_high")

    def __call__(self, logprobs: PerToken, old_logprobs: PerToken, advantages: PerToken, mask: TokenMask) -> TokenLoss:
        """The loss of every token, and where its weight was clipped; the gradient is bounded there, not gone."""
        ratio = log_ratio(logprobs, old_logprobs, mask).detach().exp()
        weight = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        masked_logprobs, masked_advantages = (torch.where(mask, values, 0.0) for values in (logprobs, advantages))
        return TokenLoss(loss=-weight * masked_advantages * masked_logprobs, clipped=weight != ratio)
