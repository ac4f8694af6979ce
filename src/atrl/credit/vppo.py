"""VPPO: tokens and rollouts by how much the picture changes what the policy says (Huang et al., arXiv 2510.09285)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.credit.base import CreditScheme, PictureMask, normalise, top_tokens
from atrl.credit.dependency import visual_dependency
from atrl.credit.weights import check_ratio
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class VppoCredit(CreditScheme):
    """The tokens that depend on the picture get the credit, the rollouts that do get more of it.

    With the visual dependency ``s[t] = KL(π(·|picture) ‖ π(·|masked picture))`` of token t: the round(ratio · T)
    tokens of the largest s are trained alone, and the rollout's advantage is scaled by its mean s (`dependency_scale`).
    *Spotlight on Token Perception*, Huang et al., arXiv 2510.09285, by their code, which estimates s from the sampled
    token. Ours: the KL over the vocabulary, and that the chosen tokens share the credit of all, so that the mean stays
    1.

    Args:
        ratio: share of a response's tokens that are trained.
        scale_low: the scale of the rollout that depends on the picture least; 1 leaves out the scaling.
        mask_ratio: share of the picture's patches that are blacked out.
        seed: of the patches.
    """

    ratio: float = 0.4
    scale_low: float = 0.9
    mask_ratio: float = 0.5
    seed: int = 0

    name = "vppo"

    def __post_init__(self) -> None:
        check_ratio("ratio", self.ratio, remedy="the paper uses 0.4")
        check_ratio("mask_ratio", self.mask_ratio, remedy="the paper uses 0.5")
        if not 0 <= self.scale_low <= 1:
            raise ValueError(f"credit.scale_low must be between 0 and 1 (off), got {self.scale_low}: the paper has 0.9")

    @property
    def picture_mask(self) -> PictureMask:
        """Half of the patches, by default."""
        return PictureMask(ratio=self.mask_ratio, seed=self.seed)

    @property
    def scope(self) -> Literal["response", "batch"]:
        """The batch, whose least and largest dependency the scale runs between."""
        return "response" if self.scale_low == 1 else "batch"

    @torch.no_grad()
    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Weights, chosen tokens, dependencies, and a scale per rollout; without a picture a rollout's tokens weigh 1.

        Raises:
            AssertionError: if the masked picture was not looked at.
        """
        mask, dependency = batch.response_mask, visual_dependency(batch, evidence, self.name)
        chosen = top_tokens(dependency, mask, ratio=self.ratio)
        return CreditOutput(
            normalise(chosen.float(), mask),
            anchors=chosen,
            density=dependency,
            trajectory_scale=None if self.scale_low == 1 else dependency_scale(dependency, mask, low=self.scale_low),
        )


def dependency_scale(
    dependency: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"], *, low: float
) -> Float[Tensor, "rollout"]:
    """``low + (high − low) · (S − min S) / (max S − min S)``, with S the mean dependency of each response.

    ``high = low + (1 − low) / mean((S − min S) / (max S − min S))``, so that the scales of the batch average 1; with
    one outlier among n rollouts it reaches ``low + (1 − low) · n``. 1 for all where the S are equal, and for a rollout
    without trained tokens, which counts in no statistic. VPPO: Huang et al., arXiv 2510.09285, and their code, which
    takes the mean over each micro-batch instead.
    """
    count = mask.sum(dim=1)
    mean = (dependency * mask).sum(dim=1) / count.clamp_min(1)
    scale = torch.ones_like(mean)
    trained = count > 0
    scores = mean[trained]
    if len(scores) == 0 or scores.max() <= scores.min():
        return scale
    share = (scores - scores.min()) / (scores.max() - scores.min())
    high = low + (1 - low) / share.mean()
    scale[trained] = low + (high - low) * share
    return scale
