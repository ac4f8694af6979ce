"""Only the tokens are trained where the policy was in doubt (Wang et al., arXiv 2506.01939)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from atrl.credit.base import CreditScheme, normalise, normalise_batch, top_tokens
from atrl.credit.weights import check_ratio
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class EntropyCredit(CreditScheme):
    """The round(ratio · T) tokens of the highest entropy get all of the credit.

    *Beyond the 80/20 Rule*, Wang et al., arXiv 2506.01939: the gradient is kept for the 20 % of a batch's tokens with
    the most entropy. Theirs is `within="batch"`; that each response keeps its own share, and that the chosen tokens
    share the credit of all, so that the mean stays 1, is ours.

    Args:
        ratio: share of the tokens that are trained.
        within: tokens compete within their "response", or within the whole global "batch". There a response may have
            no token chosen and is then not trained at all: weights average 1 over the batch, not over each response.
    """

    ratio: float = 0.2
    within: Literal["response", "batch"] = "response"

    name = "entropy"

    def __post_init__(self) -> None:
        check_ratio("ratio", self.ratio, remedy="the paper finds 0.2")

    @property
    def scope(self) -> Literal["response", "batch"]:
        """As far as tokens compete."""
        return self.within

    @property
    def normalised_over(self) -> Literal["response", "batch"]:
        """As far as tokens compete."""
        return self.within

    @torch.no_grad()
    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """1/ratio (up to rounding) on the chosen tokens, 0 on the others; 1 everywhere where all entropies are equal.

        A token that was certain is never chosen: truncated sampling leaves many of them, whose gradient is 0 and which
        would otherwise fill the share in the order of the batch's rows.
        """
        mask = batch.response_mask
        entropy = torch.where(mask, evidence.entropy.float(), 0.0)
        if self.within == "batch":
            # Ties go by the rollouts' keys, since their order is that of micro-batches and ranks.
            order = sorted(range(batch.size), key=batch.keys.__getitem__)
            chosen = torch.empty_like(mask)
            chosen[order] = top_tokens(
                entropy[order].reshape(1, -1), mask[order].reshape(1, -1), ratio=self.ratio
            ).reshape(mask.shape)
            weights = normalise_batch(chosen.float(), mask)
        else:
            chosen = top_tokens(entropy, mask, ratio=self.ratio)
            weights = normalise(chosen.float(), mask)
        return CreditOutput(weights, anchors=chosen, density=entropy)
