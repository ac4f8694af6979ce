"""GSPO: one ratio and one clip for a whole response (Zheng et al., arXiv 2507.18071)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from atrl.loss.base import PerToken, TokenLoss, TokenMask, log_ratio
from atrl.loss.clipped import ClippedLoss


@dataclass(frozen=True, kw_only=True)
class SequenceClippedLoss(ClippedLoss):
    """``-min(s·A, clip(s, 1-low, 1+high)·A)``, with ``s = exp(mean over a response's tokens of logprob - old)``.

    Equations 5 and 7 (section 4.1). Each trained token carries the loss of its response, so that `SequenceMean` gives
    the paper's objective. A mean of log-ratios moves far less than one token's, hence the narrow range (section 5.1).

    Args:
        clip_low: how far below 1 the response's ratio may go before its gradient stops.
        clip_high: how far above 1.

    Raises:
        ValueError: if `clip_low` is not in (0, 1) or `clip_high` not positive.
    """

    accepts_token_credit = False

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def __call__(self, logprobs: PerToken, old_logprobs: PerToken, advantages: PerToken, mask: TokenMask) -> TokenLoss:
        """The loss of its response on every trained token; `advantages` must not differ within a response."""
        assert _constant_in_rows(advantages, mask), "the advantages differ within a response: GspoTokenLoss takes them"
        return super().__call__(logprobs, old_logprobs, advantages, mask)

    def ratio(self, logprobs: PerToken, old_logprobs: PerToken, mask: TokenMask) -> PerToken:
        """The response's ratio, on each of its tokens."""
        return sequence_log_ratio(logprobs, old_logprobs, mask).exp().expand_as(logprobs)


@dataclass(frozen=True, kw_only=True)
class GspoTokenLoss(ClippedLoss):
    """GSPO-token: ``-min(s_t·A_t, clip(s_t, 1-low, 1+high)·A_t)``, ``s_t = sg(s) · exp(logprob_t - sg(logprob_t))``.

    Equations 13 and 14 (section 4.3); sg stops the gradient and s is the response's ratio of `SequenceClippedLoss`.
    s_t equals s, so a response is clipped as a whole for each sign of advantage, but the gradient of a token is
    ``-s·A_t`` and its advantage may be its own. With equal advantages `SequenceMean` makes it GSPO.

    Args:
        clip_low: how far below 1 the response's ratio may go before its gradient stops.
        clip_high: how far above 1.

    Raises:
        ValueError: if `clip_low` is not in (0, 1) or `clip_high` not positive.
    """

    clip_low: float = SequenceClippedLoss.clip_low
    clip_high: float = SequenceClippedLoss.clip_high

    def ratio(self, logprobs: PerToken, old_logprobs: PerToken, mask: TokenMask) -> PerToken:
        """The response's ratio, with the gradient of each token's own."""
        ratio = sequence_log_ratio(logprobs, old_logprobs, mask).detach().exp()
        return ratio * log_ratio(logprobs, logprobs.detach(), mask).exp()


def sequence_log_ratio(logprobs: PerToken, old_logprobs: PerToken, mask: TokenMask) -> Float[Tensor, "rollout 1"]:
    """Mean of ``logprob - old logprob`` over each response's trained tokens; 0 where it has none."""
    total = log_ratio(logprobs, old_logprobs, mask).sum(dim=1, keepdim=True)
    return total / mask.sum(dim=1, keepdim=True).clamp_min(1)


def _constant_in_rows(values: PerToken, mask: TokenMask) -> bool:
    largest = values.masked_fill(~mask, -torch.inf).amax(dim=1)
    smallest = values.masked_fill(~mask, torch.inf).amin(dim=1)
    return bool((largest <= smallest).all())
