"""The best that a choice of tokens could be: those that were in truth read off the picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from atrl.credit.base import CreditScheme, normalise
from atrl.credit.weights import check_levels
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class OracleCredit(CreditScheme):
    """Tokens that the problem's generator knows were read off the picture get more of the credit.

    An upper bound for schemes that must find them, on data that knows; never a method. Ours.

    Args:
        anchor_weight: of anchors, before the weights are scaled to mean 1.
        rest_weight: of all other tokens, likewise; 0 is the hard form.
    """

    anchor_weight: float = 3.0
    rest_weight: float = 1.0

    name = "oracle"
    needs_reading = True

    def __post_init__(self) -> None:
        check_levels(self.anchor_weight, self.rest_weight)

    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Weights and reading tokens; a response without one weighs its tokens the same.

        A batch may have none where data are mixed. Data without any are refused before training (`check_reading`).
        """
        reading = torch.zeros_like(batch.response_mask) if batch.reading is None else batch.reading
        anchors = reading & batch.response_mask
        weights = torch.where(anchors, self.anchor_weight, self.rest_weight)
        return CreditOutput(normalise(weights, batch.response_mask), anchors=anchors)
