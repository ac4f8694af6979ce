"""Weights against the mismatch of sampler and trainer, which give the same weights' tokens different probabilities.

The policy loss of a token is multiplied by a bounded form of ``ρ = π(token) / μ(token)``: μ of the sampler when it drew
the token, π of the trainer before the first update on it, both of the distribution that was sampled from (temperature,
bans, top-k, top-p, min-p). The loss's own ratio, of the updated policy to π, stays apart (decoupled PPO: Hilton et al.,
arXiv 2110.00641).

Of tokens, bounded from above: Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"
(2025, fengyao.notion.site/off-policy-rl). Of whole responses, and masked: Liu et al., "When Speed Kills Stability:
Demystifying RL Collapse from the Training-Inference Mismatch" (2025, richardli.xyz/rl-collapse). The four kinds are
those of TRL's `vllm_importance_sampling_mode`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}


@dataclass(frozen=True, slots=True, eq=False)
class CorrectionWeights:
    """What the loss of each token is multiplied by; no gradient."""

    weights: Float[Tensor, "rollout response"]
    """0 outside the mask."""
    limited: Bool[Tensor, "rollout response"]
    """Trained tokens whose ratio is out of bounds: truncated or masked."""


class Correction(Protocol):
    """Log-ratios of trainer to sampler → weights. What stands outside the mask has no effect."""

    unit: ClassVar[Literal["token", "sequence"]]
    """What has a weight of its own."""

    def __call__(
        self, log_ratio: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"]
    ) -> CorrectionWeights: ...


@dataclass(frozen=True, kw_only=True)
class _Bounds:
    """Raises ValueError where `low` and `high` don't have 1, the ratio of a perfect sampler, between them."""

    low: float = 0.0
    high: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < 1:
            raise ValueError(f"algorithm.correction.low must be in [0, 1), got {self.low}: 0 is no lower bound")
        if not self.high > 1:
            raise ValueError(f"algorithm.correction.high must be above 1, got {self.high}: 2 is usual")

    def _truncated(self, ratio: Tensor, mask: Bool[Tensor, "rollout response"]) -> CorrectionWeights:
        weights = ratio.clamp(self.low, self.high)
        return CorrectionWeights(torch.where(mask, weights, 0.0), mask & (weights != ratio))

    def _masked(self, ratio: Tensor, mask: Bool[Tensor, "rollout response"]) -> CorrectionWeights:
        inside = (ratio >= self.low) & (ratio <= self.high)
        return CorrectionWeights(torch.where(mask & inside, ratio, 0.0), mask & ~inside)


@dataclass(frozen=True, kw_only=True)
class TokenTruncate(_Bounds):
    """``min(max(ρ_t, low), high)``: each token's own ratio, bounded (TIS, Yao et al., with low = 0).

    Args:
        low: a smaller ratio counts as this; 0 is no bound.
        high: a larger ratio counts as this.
    """

    unit = "token"

    @torch.no_grad()
    def __call__(
        self, log_ratio: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"]
    ) -> CorrectionWeights:
        """The bounded ratio of each token."""
        return self._truncated(log_ratio.exp(), mask)


@dataclass(frozen=True, kw_only=True)
class TokenMask(_Bounds):
    """``ρ_t`` if low ≤ ρ_t ≤ high, else 0: a token whose ratio is out of bounds is not trained on.

    Args:
        low: tokens below are left out; 0 is no bound.
        high: tokens above are left out.
    """

    unit = "token"

    @torch.no_grad()
    def __call__(
        self, log_ratio: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"]
    ) -> CorrectionWeights:
        """The ratio of each token, or 0."""
        return self._masked(log_ratio.exp(), mask)


@dataclass(frozen=True, kw_only=True)
class SequenceTruncate(_Bounds):
    """``min(max(Π_t ρ_t, low), high)`` on every token of a response: the ratio of the whole, bounded.

    Args:
        low: a smaller ratio counts as this; 0 is no bound.
        high: a larger ratio counts as this.
    """

    unit = "sequence"

    @torch.no_grad()
    def __call__(
        self, log_ratio: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"]
    ) -> CorrectionWeights:
        """The bounded ratio of its response on each token."""
        return self._truncated(_sequence_ratio(log_ratio, mask), mask)


@dataclass(frozen=True, kw_only=True)
class SequenceMask(_Bounds):
    """``Π_t ρ_t`` on every token of a response if it is within [low, high], else 0 (MIS, Liu et al., with low = 0).

    Args:
        low: responses below are left out; 0 is no bound.
        high: responses above are left out.
    """

    unit = "sequence"

    @torch.no_grad()
    def __call__(
        self, log_ratio: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"]
    ) -> CorrectionWeights:
        """The ratio of its response on each token, or 0."""
        return self._masked(_sequence_ratio(log_ratio, mask), mask)


def _sequence_ratio(
    log_ratio: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"]
) -> Float[Tensor, "rollout response"]:
    return torch.where(mask, log_ratio, 0.0).sum(dim=1, keepdim=True).exp().expand(mask.shape)


def ratio_metrics(
    log_ratio: Float[np.ndarray, "token"], sequence_log_ratio: Float[np.ndarray, "rollout"]
) -> dict[str, float]:
    """The raw ratios, before any bound: of tokens and of whole responses."""
    quantiles = np.quantile(log_ratio, list(QUANTILES.values()))
    with np.errstate(over="ignore"):  # an infinite ratio is what there is to report
        metrics = {}
        for name, ratio in (("ratio", np.exp(log_ratio)), ("sequence_ratio", np.exp(sequence_log_ratio))):
            metrics |= {f"rollout/{name}_{of}": getattr(ratio, of)() for of in ("mean", "min", "max")}
        metrics |= {f"rollout/ratio_{name}": np.exp(at) for name, at in zip(QUANTILES, quantiles, strict=True)}
    return {name: float(value) for name, value in metrics.items()}
