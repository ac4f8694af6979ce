"""What every scheme promises of its output, looked at before it reaches the loss: schemes may be anybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.types import CreditOutput

if TYPE_CHECKING:
    from atrl.credit.base import CreditScheme

MEAN_TOLERANCE = 1e-3
"""How far from 1 a mean of weights may be. Rounding is 1e-4 at most over thousands of float32 weights."""

_REMEDY = "return CreditOutput(normalise(weights, batch.response_mask)), with weights of 0 or more"


def checked(output: CreditOutput, mask: Bool[Tensor, "rollout response"], scheme: CreditScheme) -> CreditOutput:
    """`output`, if it is what `scheme` must return for the trained tokens in `mask`.

    Weights that are no numbers pass, since they may come of a policy that has broken down: they make the loss none, and
    all ranks stop together (`alarms.clip_gradients`).

    Raises:
        ValueError: if it is not, with the scheme, what is wrong and the remedy.
    """
    if not isinstance(output, CreditOutput):
        raise ValueError(f"credit={scheme.name} returned {type(output).__name__}, no CreditOutput: {_REMEDY}")
    _check_tensor("weights", output.weights, torch.float32, mask, scheme)
    for name, dtype in (("anchors", torch.bool), ("density", torch.float32)):
        if getattr(output, name) is not None:
            _check_tensor(name, getattr(output, name), dtype, mask, scheme)
    if output.trajectory_scale is not None:
        _check_tensor("trajectory_scale", output.trajectory_scale, torch.float32, mask[:, 0], scheme)
    if fault := _fault(output.weights, mask, whole=scheme.normalised_over == "batch"):
        raise ValueError(f"credit={scheme.name} gave {fault}: {_REMEDY}")
    return output


def _check_tensor(
    field: str, tensor: object, dtype: torch.dtype, like: Bool[Tensor, "*place"], scheme: CreditScheme
) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"credit={scheme.name} gave {field} that are a {type(tensor).__name__}: make them a tensor")
    for what, found, wanted in (
        ("shape", list(tensor.shape), list(like.shape)),
        ("type", tensor.dtype, dtype),
        ("device", tensor.device, like.device),
    ):
        if found != wanted:
            raise ValueError(f"credit={scheme.name} gave {field} of {what} {found}, and not {wanted}")
    if tensor.requires_grad:
        raise ValueError(
            f"credit={scheme.name} gave {field} that carry a gradient, which would change what is learned: put "
            "@torch.no_grad() above its assign"
        )


def _fault(
    weights: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"], *, whole: bool
) -> str | None:
    """What is wrong with the weights; None if nothing is, which takes one look at what the device has worked out."""
    counts = mask.sum(dim=1)
    sums, trained = (weights.sum(), counts.sum()) if whole else (weights.sum(dim=1), counts)
    means = torch.where(trained > 0, sums / trained.clamp_min(1), 1.0)
    off = (means - 1).abs().max()
    least, outside = torch.where(mask, weights, 0.0).min(), torch.where(mask, 0.0, weights).abs().max()
    least, outside, off = torch.stack([least, outside, off]).tolist()
    if least < 0:
        return f"a token the weight {least:.3g}"
    if outside > 0:
        return f"padding the weight {outside:.3g}"
    if off > MEAN_TOLERANCE:
        mean = means.flatten()[(means - 1).abs().argmax()].item()
        return f"weights that average {mean:.4g} over {'the batch' if whole else 'a response'}, not 1"
    return None
