"""How anchors differ from the other tokens of a batch."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from atrl.loss.kl import k3_divergence


def contrast_sums(
    anchors: Bool[Tensor, "rollout response"],
    mask: Bool[Tensor, "rollout response"],
    *,
    entropy: Float[Tensor, "rollout response"],
    logprobs: Float[Tensor, "rollout response"],
    reference_logprobs: Float[Tensor, "rollout response"] | None,
    advantages: Float[Tensor, "rollout response"],
) -> dict[str, tuple[float, float]]:
    """Sums over a batch's (anchors, other trained tokens), from which `contrast` makes metrics; ranks' add up.

    ``gradient`` is the size of the loss's gradient at the sampled token's logit, before aggregation and at ratio 1:
    ``|A_t| · (1 - π_t)``, since ``∂ log π_t / ∂ z_t = 1 - π_t`` for the logit z_t of the token that was drawn.

    Args:
        anchors: what the scheme singled out.
        mask: the tokens that are trained.
        entropy: in nats.
        logprobs: of the policy that sampled.
        reference_logprobs: of the reference, where there is one.
        advantages: per token, weighed by credit.
    """
    values = {"tokens": mask.double(), "entropy": entropy, "gradient": advantages.abs() * -logprobs.expm1()}
    if reference_logprobs is not None:
        values["kl"] = k3_divergence(logprobs, reference_logprobs)
    anchors_only, rest = mask & anchors, mask & ~anchors
    return {
        name: (float(value[anchors_only].double().sum()), float(value[rest].double().sum()))
        for name, value in values.items()
    }


def contrast(sums: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Means a token of anchors and of the rest, in nats, and the anchors' share of the gradient; nothing of no token.

    Args:
        sums: `contrast_sums` of the global batch.
    """
    metrics = {
        f"credit/{part}_{name}": sums[name][index] / sums["tokens"][index]
        for name in ("entropy", "kl")
        for index, part in enumerate(("anchor", "rest"))
        if name in sums and sums["tokens"][index]
    }
    whole = sum(sums["gradient"])
    return metrics | ({"credit/anchor_gradient_share": sums["gradient"][0] / whole} if whole > 0 else {})
