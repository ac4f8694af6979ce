"""Only the densest tokens are trained."""

from __future__ import annotations

from dataclasses import dataclass

from atrl.credit.base import normalise, top_tokens
from atrl.credit.density import DensityCredit
from atrl.credit.weights import check_ratio
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class AnchorOnlyCredit(DensityCredit):
    """All of a response's credit goes to its round(anchor_ratio · T) densest tokens, none to the rest.

    Args:
        anchor_ratio: share of a response's tokens that are trained.
    """

    anchor_ratio: float = 0.15

    name = "anchor_only"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio("anchor_ratio", self.anchor_ratio)

    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """T/k on each of the k anchors, 0 on the others; without a picture every token weighs 1."""
        density = self.density(batch, evidence)
        anchors = top_tokens(density, batch.response_mask, ratio=self.anchor_ratio)
        return CreditOutput(normalise(anchors.float(), batch.response_mask), anchors=anchors, density=density)
