"""What a policy loss returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TokenLoss:
    """A loss per token, not yet masked or averaged."""

    loss: Float[Tensor, "rollout response"]
    clipped: Bool[Tensor, "rollout response"]
    """Where a clip took the gradient away."""


class PolicyLoss(Protocol):
    """Tensors in, a loss per token out; knows nothing of masks, batches or trainers."""

    def __call__(
        self,
        logprobs: Float[Tensor, "rollout response"],
        old_logprobs: Float[Tensor, "rollout response"],
        advantages: Float[Tensor, "rollout response"],
    ) -> TokenLoss: ...
