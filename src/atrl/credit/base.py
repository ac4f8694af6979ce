"""The interface of a credit scheme, and what all of them share."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.types import AttentionCapture, CreditOutput, Experience


class CreditScheme(Protocol):
    """Weights for the tokens of a batch; a pure function of its arguments."""

    name: str
    needs_attention: bool
    """Whether `capture` must be given: the scoring forward then runs with the attention probe on."""

    def __call__(self, batch: Experience, capture: AttentionCapture | None) -> CreditOutput: ...


def normalise(
    weights: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"]
) -> Float[Tensor, "rollout response"]:
    """`weights` scaled so that each response's trained tokens average 1, and 0 elsewhere.

    The mean of 1 keeps the effective learning rate the same whatever the scheme. A response whose weights are all
    zero gets 1 everywhere: no information is no reason to train it less.
    """
    weights = torch.where(mask, weights, 0.0)
    total, count = weights.sum(dim=1, keepdim=True), mask.sum(dim=1, keepdim=True)
    scaled = torch.where(total > 0, weights * (count / total.clamp_min(torch.finfo(weights.dtype).tiny)), mask.float())
    return torch.where(mask, scaled, 0.0)
