"""An algorithm: advantage estimator, policy loss, aggregation, KL term and what happens to rewards before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from atrl.advantage import GroupAdvantage
from atrl.loss.aggregation import BatchTotals, ConstantLength, SequenceMean, TokenMean
from atrl.loss.base import PolicyLoss
from atrl.loss.kl import k3_divergence
from atrl.loss.overlong import OverlongPenalty
from atrl.rollout.dynamic import DynamicSampling
from atrl.types import CreditOn, Experience


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised: ``aggregate(policy loss + kl_coefficient · k3)``.

    Args:
        advantage: rewards of a group → an advantage per rollout.
        loss: log-probs and advantages → a loss per token.
        aggregation: losses per token → one number.
        kl_coefficient: weight of the divergence from the reference policy; with 0 no reference model is kept.
        updates_per_batch: optimizer steps on one batch of rollouts.
        overlong: is added to the rewards before the advantage; None leaves them alone.
        dynamic_sampling: replaces prompts whose rewards are all equal before the advantage; None keeps all.
        credit_on: the rollouts whose tokens get a credit scheme's weights, by the sign of their advantage.
    """

    advantage: GroupAdvantage
    loss: PolicyLoss
    aggregation: TokenMean | SequenceMean | ConstantLength
    kl_coefficient: float = 0.0
    updates_per_batch: int = 1
    overlong: OverlongPenalty | None = None
    dynamic_sampling: DynamicSampling | None = None
    credit_on: CreditOn = "all"

    def __post_init__(self) -> None:
        if self.kl_coefficient < 0:
            raise ValueError(f"algorithm.kl_coefficient must be 0 (off) or more, got {self.kl_coefficient}: try 0.04")
        if self.updates_per_batch < 1:
            raise ValueError(f"algorithm.updates_per_batch must be at least 1, got {self.updates_per_batch}: try 1")
        if self.credit_on not in get_args(CreditOn):
            raise ValueError(
                f"algorithm.credit_on must be one of {', '.join(get_args(CreditOn))}, got {self.credit_on!r}"
            )

    def __call__(
        self,
        logprobs: Float[Tensor, "rollout response"],
        advantages: Float[Tensor, "rollout response"],
        batch: Experience,
        totals: BatchTotals,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """This micro-batch's share of the loss, and sums over its trained tokens for the metrics.

        Where the batch has no old log-probs the current ones take their place: with one update a batch the ratio
        is 1, and only its gradient matters. Whatever stands outside the response mask has no effect.
        """
        mask = batch.response_mask
        # Here and not only in the aggregation: behind the loss a NaN's gradient would be NaN again.
        logprobs = torch.where(mask, logprobs, 0.0)
        old_logprobs = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        token = self.loss(logprobs, old_logprobs, advantages, mask)
        per_token = token.loss
        sums = {"clip_share": (token.clipped & mask).sum().float()}
        if self.kl_coefficient > 0:
            assert batch.reference_logprobs is not None, "algorithm.kl_coefficient > 0 needs reference log-probs"
            divergence = k3_divergence(logprobs, batch.reference_logprobs)
            per_token = per_token + self.kl_coefficient * divergence
            sums["kl"] = torch.where(mask, divergence.detach(), 0.0).sum()
        return self.aggregation(per_token, mask, totals), sums
