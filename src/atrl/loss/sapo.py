"""SAPO: a soft gate in place of the clip."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from atrl.loss.base import PerToken, TokenLoss, TokenMask, log_ratio, require_positive


@dataclass(frozen=True, kw_only=True)
class SoftAdaptiveLoss:
    """``-(4/τ)·σ(τ·(r-1))·A`` with ``r = exp(logprob - old logprob)``; τ depends on the sign of A.

    SAPO: Gao et al., arXiv 2511.20347, section 3, equations 5 and 6. The gradient by the log-prob is
    ``-4·p·(1-p)·r·A`` with ``p = σ(τ·(r-1))``: ``-A`` at ratio 1, as without a gate, and fading on both sides of it,
    faster for a larger τ.

    Args:
        temperature_positive: τ of tokens with a positive advantage.
        temperature_negative: τ of all others. They push probability to tokens that were not sampled, which is less
            stable, so their gate is the narrower one.

    Raises:
        ValueError: if a temperature is not positive.
    """

    accepts_token_credit = True

    temperature_positive: float = 1.0
    temperature_negative: float = 1.05

    def __post_init__(self) -> None:
        require_positive(self, "temperature_positive", "temperature_negative")

    def __call__(self, logprobs: PerToken, old_logprobs: PerToken, advantages: PerToken, mask: TokenMask) -> TokenLoss:
        """The loss of every token; nothing is ever clipped."""
        advantages = torch.where(mask, advantages, 0.0)
        ratio = log_ratio(logprobs, old_logprobs, mask).exp()
        temperature = torch.full_like(advantages, self.temperature_negative)
        temperature = temperature.masked_fill(advantages > 0, self.temperature_positive)
        gate = 4 / temperature * torch.sigmoid(temperature * (ratio - 1))
        return TokenLoss(loss=-gate * advantages, clipped=torch.zeros_like(mask))
