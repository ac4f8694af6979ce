"""Distance to the reference policy."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def k3_divergence(
    logprobs: Float[Tensor, "rollout response"], reference_logprobs: Float[Tensor, "rollout response"]
) -> Float[Tensor, "rollout response"]:
    """An estimate per token of KL(policy ‖ reference), never negative: ``exp(d) - d - 1``, d = log π_ref - log π.

    Source: J. Schulman, "Approximating KL divergence" (2020), estimator k3; GRPO: arXiv 2402.03300, equation 4.
    """
    difference = reference_logprobs - logprobs
    return difference.exp() - difference - 1
