"""Top-k, top-p and min-p: which tokens may be drawn at all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from atrl.types import KeptTokens

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def check_truncation(*, top_k: int | None, top_p: float, min_p: float) -> None:
    """Raises ValueError, in one line, for a limit that keeps no token."""
    if top_k is not None and top_k < 1:
        raise ValueError(f"rollout.top_k must be at least 1, got {top_k}: null keeps all tokens")
    if not 0 < top_p <= 1:
        raise ValueError(f"rollout.top_p must be in (0, 1], got {top_p}: 1 keeps all tokens")
    if not 0 <= min_p <= 1:
        raise ValueError(f"rollout.min_p must be in [0, 1], got {min_p}: 0 keeps all tokens")


def kept_tokens(
    logprobs: Float[Tensor, "row vocabulary"], *, top_k: int | None, top_p: float, min_p: float
) -> Bool[Tensor, "row vocabulary"]:
    """The tokens that stay of the distribution `logprobs`, in vLLM's order: min-p, then top-k, then top-p.

    min-p (Nguyen et al., arXiv 2407.01082): at least `min_p` times as likely as the likeliest. top-k (Fan et al., arXiv
    1805.04833): the `top_k` likeliest, with all that tie with the last of them. top-p (Holtzman et al., arXiv
    1904.09751): of what is left, scaled to add up to 1, the likeliest until they reach `top_p`; always at least one.
    """
    kept = logprobs > -torch.inf
    if min_p > 0:
        kept &= logprobs >= logprobs.amax(dim=-1, keepdim=True) + math.log(min_p)
    if top_k is not None:
        left = logprobs.masked_fill(~kept, -torch.inf)
        kept &= left >= left.topk(min(top_k, left.shape[-1]), dim=-1).values[:, -1:]
    if top_p < 1:
        left = logprobs.masked_fill(~kept, -torch.inf).double().softmax(dim=-1)
        probabilities, order = left.sort(dim=-1, descending=True, stable=True)
        likelier = probabilities.cumsum(dim=-1) - probabilities  # what all likelier ones have together
        kept &= torch.empty_like(kept).scatter_(1, order, likelier < top_p)
    return kept


def collect(kept: list[list[Tensor]]) -> list[KeptTokens]:
    """[rollout] from the ids that were kept at each of a rollout's tokens."""
    return [
        KeptTokens(ids=torch.cat(ids).to(torch.int32).cpu(), counts=torch.tensor([len(entry) for entry in ids]).int())
        for ids in kept
    ]
