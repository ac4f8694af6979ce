"""AT-RL without its clusters: anchors straight from the density of each token."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from atrl.credit.base import normalise, top_tokens
from atrl.credit.density import DensityCredit
from atrl.credit.weights import check_weights
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class TokenLevelCredit(DensityCredit):
    """The round(anchor_ratio · T) densest tokens of each response get more of the credit.

    What `credit=atrl` does when its graph has one cluster and enough tokens look at the picture: here one that does not
    is no anchor even where the share leaves room for it. Beside `atrl`, what the clusters add. Ours.

    Args:
        anchor_ratio: share of a response's tokens that are anchors.
        anchor_weight: of anchors, before the weights are scaled to mean 1.
        rest_weight: of all other tokens, likewise; 0 is the hard form.
    """

    anchor_ratio: float = 0.15
    anchor_weight: float = 3.0
    rest_weight: float = 1.0

    name = "token_level"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.anchor_ratio, self.anchor_weight, self.rest_weight)

    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Weights, anchors and densities of every response; without a picture all weigh the same."""
        density = self.density(batch, evidence)
        anchors = top_tokens(density, batch.response_mask, ratio=self.anchor_ratio)
        weights = torch.where(anchors, self.anchor_weight, self.rest_weight)
        # A rest_weight of 0 where nothing is an anchor is no information either: `normalise` makes that 1.
        return CreditOutput(normalise(weights, batch.response_mask), anchors=anchors, density=density)
