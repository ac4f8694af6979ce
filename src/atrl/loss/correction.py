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

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float

from atrl.loss.base import PerToken, TokenMask

QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}


@dataclass(frozen=True, slots=True, eq=False)
class CorrectionWeights:
    """What the loss of each token is multiplied by; no gradient."""

    weights: PerToken
    """0 outside the mask."""
    limited: TokenMask
    """Trained tokens whose ratio is out of bounds: truncated or masked."""


class Correction(Protocol):
    """Log-ratios of trainer to sampler → weights. What stands outside the mask has no effect."""

    def __call__(self, log_ratio: PerToken, mask: TokenMask) -> CorrectionWeights: ...


@dataclass(frozen=True, kw_only=True)
class _Bounded(ABC):
    unit: Literal["token", "sequence"]
    low: float = 0.0
    high: float = 2.0

    def __post_init__(self) -> None:
        """Raises ValueError where `low` and `high` don't have 1, the ratio of a perfect sampler, between them."""
        if self.unit not in ("token", "sequence"):
            raise ValueError(f"algorithm.correction.unit must be token or sequence, got {self.unit!r}")
        if not 0 <= self.low < 1:
            raise ValueError(f"algorithm.correction.low must be in [0, 1), got {self.low}: 0 is no lower bound")
        if not self.high > 1:
            raise ValueError(f"algorithm.correction.high must be above 1, got {self.high}: 2 is usual")

    @torch.no_grad()
    def __call__(self, log_ratio: PerToken, mask: TokenMask) -> CorrectionWeights:
        """The ratio of each token, or of its whole response, within the bounds."""
        if self.unit == "sequence":
            log_ratio = torch.where(mask, log_ratio, 0.0).sum(dim=1, keepdim=True).expand(mask.shape)
        ratio = log_ratio.exp()
        inside = (ratio >= self.low) & (ratio <= self.high)
        return CorrectionWeights(torch.where(mask, self._bounded(ratio, inside), 0.0), mask & ~inside)

    @abstractmethod
    def _bounded(self, ratio: PerToken, inside: TokenMask) -> PerToken:
        """What counts of each ratio, given whether it is within the bounds."""


@dataclass(frozen=True, kw_only=True)
class Truncate(_Bounded):
    """``min(max(ρ, low), high)``: TIS of Yao et al. with ``unit=token`` and ``low=0``.

    Args:
        unit: token, each has the ratio ρ_t of its own; sequence, all of a response have the product Π_t ρ_t.
        low: a smaller ratio counts as this; 0 is no bound.
        high: a larger ratio counts as this.
    """

    def _bounded(self, ratio: PerToken, inside: TokenMask) -> PerToken:
        return ratio.clamp(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Mask(_Bounded):
    """``ρ`` if ``low ≤ ρ ≤ high``, else 0: not trained on. MIS of Liu et al. with ``unit=sequence`` and ``low=0``.

    Args:
        unit: token, each has the ratio ρ_t of its own; sequence, all of a response have the product Π_t ρ_t.
        low: what has a smaller ratio is left out; 0 is no bound.
        high: what has a larger ratio is left out.
    """

    def _bounded(self, ratio: PerToken, inside: TokenMask) -> PerToken:
        return torch.where(inside, ratio, 0.0)


def ratio_metrics(
    log_ratio: Float[np.ndarray, "token"], sequence_log_ratio: Float[np.ndarray, "rollout"]
) -> dict[str, float]:
    """The raw ratios, before any bound: of tokens and of whole responses."""
    quantiles = np.quantile(log_ratio, list(QUANTILES.values()))
    with np.errstate(over="ignore"):  # an infinite ratio is what there is to report
        metrics: dict[str, float] = {}
        for name, ratio in (("ratio", np.exp(log_ratio)), ("sequence_ratio", np.exp(sequence_log_ratio))):
            metrics |= {f"rollout/{name}_{of}": getattr(ratio, of)() for of in ("mean", "min", "max")}
        metrics |= {f"rollout/ratio_{name}": np.exp(at) for name, at in zip(QUANTILES, quantiles, strict=True)}
    return {name: float(value) for name, value in metrics.items()}
