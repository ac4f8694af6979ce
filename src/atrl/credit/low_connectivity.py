"""The paper's control: only the tokens that are not anchors are trained."""

from __future__ import annotations

from dataclasses import dataclass

from atrl.credit.base import normalise, top_tokens
from atrl.credit.density import DensityCredit
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class LowConnectivityCredit(DensityCredit):
    """None of the credit goes to the round(anchor_ratio · T) densest tokens, all of it to the rest.

    Jiao et al., arXiv 2602.11455, report that training these tokens alone degrades badly. The control is theirs, that
    the others weigh the same is ours.

    Args:
        anchor_ratio: share of a response's tokens that are left out.
    """

    anchor_ratio: float = 0.15

    name = "low_connectivity"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.anchor_ratio < 1:
            raise ValueError(
                f"credit.anchor_ratio must be in (0, 1), got {self.anchor_ratio}: the paper finds 0.15, and some token "
                "must be left to train"
            )

    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """T/(T-k) on all but the k anchors; `anchors` marks the tokens left out.

        A response of so few tokens that all are anchors has nothing else to train: its tokens weigh 1.
        """
        density = self.density(batch, evidence)
        anchors = top_tokens(density, batch.response_mask, ratio=self.anchor_ratio)
        return CreditOutput(normalise((~anchors).float(), batch.response_mask), anchors=anchors, density=density)
