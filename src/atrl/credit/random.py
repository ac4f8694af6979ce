"""Anchors by lot: the control that a scheme must beat to claim that *which* tokens it chooses matters."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from atrl.credit.base import CreditScheme, normalise, seed_of
from atrl.credit.weights import check_weights, number_of
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class RandomCredit(CreditScheme):
    """round(anchor_ratio · T) tokens of each response, drawn without replacement, get more of the credit.

    Args:
        anchor_ratio: share of a response's tokens that are anchors.
        anchor_weight: of anchors, before the weights are scaled to mean 1.
        rest_weight: of all other tokens, likewise; 0 is the hard form.
        seed: of the lots; with a rollout's key it alone decides, whatever the micro-batch or the rank.
    """

    anchor_ratio: float = 0.15
    anchor_weight: float = 3.0
    rest_weight: float = 1.0
    seed: int = 0

    name = "random"

    def __post_init__(self) -> None:
        check_weights(self.anchor_ratio, self.anchor_weight, self.rest_weight)

    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Weights and anchors of every response; `evidence` is not looked at."""
        mask = batch.response_mask
        anchors = torch.zeros_like(mask)
        for row, key in enumerate(batch.keys):
            tokens = mask[row].nonzero()[:, 0]
            if len(tokens):
                generator = torch.Generator().manual_seed(seed_of("random credit", self.seed, key))
                order = torch.randperm(len(tokens), generator=generator).to(tokens.device)
                anchors[row, tokens[order[: number_of(self.anchor_ratio, len(tokens))]]] = True
        weights = torch.where(anchors, self.anchor_weight, self.rest_weight)
        return CreditOutput(normalise(weights, mask), anchors=anchors)
