"""Credit where a masked picture changes what the policy says: anchors by consequence in place of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.credit.base import CreditScheme, Hiding, PictureMask, normalise, top_tokens
from atrl.credit.dependency import visual_dependency
from atrl.credit.weights import check_levels, check_ratio
from atrl.types import CreditOutput, Evidence, Experience

UNIT, MOST = 2.0**-32, 2.0**16
"""Nats that dependencies are added up in, and the most that one token's counts for."""


@dataclass(frozen=True, kw_only=True)
class VisualDependencyCredit(CreditScheme):
    """The tokens that depend most on the picture get more of the credit.

    A token's dependency is ``s[t] = KL(π(·|picture) ‖ π(·|masked picture))``, that of VPPO (Huang et al., arXiv
    2510.09285), which trains the upper 40 % alone and scales rollouts as well. The soft weights are those of
    `TokenLevelCredit`. Together ours. Attention says where a row looks, this says whether it matters: a token that
    copies what an earlier row has read from the picture depends on it and looks elsewhere. It costs a forward pass
    without gradient over the masked pictures.

    How many read the picture differs between tasks by more than attention shows; dependency says that too: by default
    anchors are the fewest tokens that hold `anchor_mass` of what the response depends on the picture.

    Args:
        anchor_ratio: share of a response's tokens that are anchors; "auto" is the fewest that hold `anchor_mass`.
        anchor_mass: share of a response's dependency that its anchors hold, where their number is "auto".
        anchor_weight: of anchors, before the weights are scaled to mean 1.
        rest_weight: of all other tokens, likewise; 0 is the hard form.
        mask: what becomes of patches: "black", or "shuffled", which is to change places with each other.
        mask_ratio: share of the picture's patches that are masked.
        seed: of the patches.
    """

    anchor_ratio: float | Literal["auto"] = "auto"
    anchor_mass: float = 0.95
    anchor_weight: float = 3.0
    rest_weight: float = 1.0
    mask: Hiding = "black"
    mask_ratio: float = 0.5
    seed: int = 0

    name = "visual_dependency"

    def __post_init__(self) -> None:
        if self.anchor_ratio != "auto":
            check_ratio("anchor_ratio", self.anchor_ratio, remedy="the paper finds 0.15, auto goes by anchor_mass")
        check_ratio("anchor_mass", self.anchor_mass, remedy="try 0.95")
        check_levels(self.anchor_weight, self.rest_weight)
        check_ratio("mask_ratio", self.mask_ratio, remedy="try 0.5")

    @property
    def picture_mask(self) -> PictureMask:
        """Half of the patches black, by default."""
        return PictureMask(ratio=self.mask_ratio, seed=self.seed, by=self.mask)

    @torch.no_grad()
    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Weights, anchors and dependencies of every response; without a picture all tokens weigh the same.

        Raises:
            AssertionError: if the masked picture was not looked at.
        """
        mask, dependency = batch.response_mask, visual_dependency(batch, evidence, self.name)
        if self.anchor_ratio == "auto":
            anchors = fewest_tokens(dependency, mask, mass=self.anchor_mass)
        else:
            anchors = top_tokens(dependency, mask, ratio=self.anchor_ratio)
        weights = torch.where(anchors, self.anchor_weight, self.rest_weight)
        return CreditOutput(normalise(weights, mask), anchors=anchors, density=dependency)


def fewest_tokens(
    scores: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"], *, mass: float
) -> Bool[Tensor, "rollout response"]:
    """The fewest tokens of each response whose `scores` sum to `mass` of all of its; ties go to the earlier token.

    None where all scores are equal: ties alone would choose. Sums are of whole numbers, `UNIT` each, and so neither
    padding nor the device has a say in them.

    Args:
        scores: in nats, at least 0; beyond `MOST` no more counts.
    """
    parts = (torch.where(mask, scores, 0.0).double().clamp_max(MOST) / UNIT).round().long()
    ordered, order = parts.sort(dim=1, descending=True, stable=True)
    before = ordered.cumsum(dim=1) - ordered
    needed = before < mass * parts.sum(dim=1, keepdim=True)
    uneven = parts.amax(dim=1, keepdim=True) != parts.masked_fill(~mask, torch.iinfo(torch.long).max).amin(
        1, keepdim=True
    )
    return torch.zeros_like(mask).scatter(1, order, needed) & uneven
