"""Credit for what the policy hardly expected itself to say."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from atrl.credit.base import CreditScheme, normalise, top_tokens
from atrl.credit.weights import check_weights
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class SurprisalCredit(CreditScheme):
    """The round(anchor_ratio · T) tokens of the largest surprisal −log π(token) of each response get more.

    Args:
        anchor_ratio: share of a response's tokens that are anchors.
        anchor_weight: of an anchor, before scaling to mean 1.
        rest_weight: of the others; 0 trains anchors alone.
    """

    anchor_ratio: float = 0.15
    anchor_weight: float = 3.0
    rest_weight: float = 1.0

    name = "surprisal"

    def __post_init__(self) -> None:
        check_weights(self.anchor_ratio, self.anchor_weight, self.rest_weight)

    @torch.no_grad()
    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Two weights; nothing is read from the layers."""
        surprisal = -evidence.logprobs.float()
        anchors = top_tokens(surprisal, batch.response_mask, ratio=self.anchor_ratio)
        weights = torch.where(anchors, self.anchor_weight, self.rest_weight)
        return CreditOutput(normalise(weights, batch.response_mask), anchors=anchors, density=surprisal)
