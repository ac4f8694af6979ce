"""How much what the policy says of a token depends on the picture, by what it says when parts of it are black."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.types import Evidence, Experience

ROUNDING = 1e-6
"""Nats that two passes over the same input may differ by: less is no dependency. Where there is no picture to mask, it
would otherwise be rounding that chooses the tokens."""


def visual_dependency(batch: Experience, evidence: Evidence, scheme: str) -> Float[Tensor, "rollout response"]:
    """``s[t] = KL(π(·|picture) ‖ π(·|masked picture))`` in nats; 0 on padding and up to `ROUNDING`.

    VPPO: Huang et al., arXiv 2510.09285.

    Raises:
        AssertionError: if the masked picture was not looked at; `scheme` is who needs it.
    """
    assert evidence.masked is not None, f"credit scheme {scheme} needs the policy's view of the masked picture"
    return above_rounding(evidence.masked.divergence.float(), batch.response_mask)


def above_rounding(
    divergence: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"]
) -> Float[Tensor, "rollout response"]:
    """`divergence` where it is a dependency; 0 on padding and where it is no more than `ROUNDING`."""
    return torch.where(mask & (divergence > ROUNDING), divergence, 0.0)
