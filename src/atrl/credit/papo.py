"""PAPO: a loss that wants the picture to matter, beside an unweighted advantage (Wang et al., arXiv 2507.06448)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from atrl.credit.base import CreditScheme, PictureMask
from atrl.credit.weights import check_ratio
from atrl.types import CreditOutput, Evidence, Experience

LARGEST_LOG_RATIO, LARGEST_DIVERGENCE = 20.0, 10.0
"""Where the authors' code clips the estimator: beyond, a token has no gradient. A masked picture can make a token
thousands of times likelier, and the estimator grows like that ratio."""


@dataclass(frozen=True, kw_only=True)
class PapoCredit(CreditScheme):
    """Every token weighs 1; the divergence from the policy with a masked picture is maximised.

    Loss per token ``−γ · (exp(d) − d − 1) − η · (log π + log π_mask)`` with ``d = log π_mask − log π`` of the sampled
    token: k3 of KL(π ‖ π_mask), less the double entropy loss in its one-sample form −log π. *Perception-Aware Policy
    Optimization*, Wang et al., arXiv 2507.06448, as their code and TRL's trainer have it. The formula printed in the
    paper has ``r − log r − 1`` with ``r = π / π_mask``, the same with d's sign turned. TRL takes the entropies over the
    vocabulary, clips nothing, and masks contiguous regions.

    Weights of 1 suit every objective, a ratio per sequence (GSPO) included, so `is_uniform` holds: it speaks of the
    weights alone. The loss is added to whatever the objective makes of them.

    Args:
        gamma: of the divergence; above 0.02 or so the paper sees it grow without bound and training collapse.
        eta: of the double entropy loss; 0 leaves it out. The paper needs it (0.03) where there is no KL to a reference.
        mask_ratio: share of the picture's patches that are blacked out.
        masked_gradient: whether the gradient also flows through the masked picture, as the paper writes it. False is
            the default of the authors' code: cheaper, but then the entropy of the masked policy is a constant.
        seed: of the patches.
    """

    gamma: float = 0.01
    eta: float = 0.03
    mask_ratio: float = 0.6
    masked_gradient: bool = True
    seed: int = 0

    name = "papo"
    is_uniform = True

    def __post_init__(self) -> None:
        check_ratio("mask_ratio", self.mask_ratio, remedy="the paper uses 0.6")
        for option, usual in (("gamma", 0.01), ("eta", 0.03)):
            if getattr(self, option) < 0:
                raise ValueError(f"credit.{option} must be 0 (off) or more, got {getattr(self, option)}: try {usual}")

    @property
    def picture_mask(self) -> PictureMask:
        """Three patches of five, by default."""
        return PictureMask(ratio=self.mask_ratio, seed=self.seed)

    @property
    def has_auxiliary_loss(self) -> bool:
        """Always: without it the scheme would be `uniform`."""
        return True

    @property
    def needs_masked_gradient(self) -> bool:
        """As the option says."""
        return self.masked_gradient

    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Ones on the response mask."""
        return CreditOutput(weights=batch.response_mask.float())

    def auxiliary_loss(
        self, logprobs: Float[Tensor, "rollout response"], evidence: Evidence
    ) -> Float[Tensor, "rollout response"]:
        """The loss of each token; to be aggregated over the trained ones.

        Raises:
            AssertionError: if the masked picture was not looked at.
        """
        assert evidence.masked is not None, "credit scheme papo needs the policy's view of the masked picture"
        masked = evidence.masked.logprobs if self.masked_gradient else evidence.masked.logprobs.detach()
        difference = (masked - logprobs).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        divergence = (torch.expm1(difference) - difference).clamp_max(LARGEST_DIVERGENCE)
        return -self.gamma * divergence - self.eta * (logprobs + masked)
