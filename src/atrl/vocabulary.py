"""The vocabulary head and what is said of tokens by it, a chunk of rows at a time.

At a vocabulary of 152,000 the logits of 2,048 tokens take 1.2 GB in float32, several times over while they are worked
on, and a model's own forward pass makes those of all tokens at once. Here no more than a chunk's exist, in the backward
pass too, which computes them again (as Megatron-LM and Liger Kernel do for their losses: Hsu et al., arXiv 2410.10989,
section 3.2). A batch that fits into one chunk keeps its probabilities instead, which saves that product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from atrl.logprobs import keep_only, process_logits, token_divergence, token_entropy
from atrl.types import KeptTokens

Weight = Float[Tensor, "vocabulary width"] | None
"""Of the head; None where the rows are logits already."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenDistributions:
    """Row of the head's input → log-distribution that its token was sampled from.

    Args:
        temperature: that the logits are divided by.
        banned_ids: tokens of probability 0.
        kept: of each row the tokens that alone have a probability; None for all but the banned ones.
        chunk: rows that are looked at together; None for all.
    """

    temperature: float
    banned_ids: Sequence[int] = ()
    kept: KeptTokens | None = None
    chunk: int | None = None

    def chunks(self, rows: int) -> list[slice]:
        """Consecutive slices that cover `rows` rows."""
        size = max(1, rows if self.chunk is None else self.chunk)
        return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]

    def log(
        self, rows: Float[Tensor, "all_tokens width"], weight: Weight, part: slice
    ) -> Float[Tensor, "token vocabulary"]:
        """Log-probs of the whole vocabulary at the rows of `part`, in float32 or more; -inf where it is 0."""
        # The product has no name, so that it is gone before the next buffer of its size is made.
        processed = process_logits(
            rows[part] if weight is None else linear(rows[part], weight),
            temperature=self.temperature,
            banned_ids=self.banned_ids,
        )
        if self.kept is not None:
            start, stop = (int(self.kept.counts[:row].sum()) for row in (part.start, part.stop))
            processed = keep_only(processed, KeptTokens(self.kept.ids[start:stop], self.kept.counts[part]))
        return processed.log_softmax(-1)


class _Scores(torch.autograd.Function):
    """Log-prob of each row's token, and the entropy of its distribution, which has no gradient."""

    @staticmethod
    def forward(
        ctx,
        rows: Float[Tensor, "token width"],
        weight: Weight,
        token_ids: Int[Tensor, "token"],
        distributions: TokenDistributions,
    ) -> tuple[Float[Tensor, "token"], Float[Tensor, "token"]]:
        parts = distributions.chunks(len(rows))
        keeps = len(parts) == 1 and (ctx.needs_input_grad[0] or ctx.needs_input_grad[1])

        def scores(part: slice) -> tuple[Tensor, Tensor, Tensor | None]:
            log_distribution = distributions.log(rows, weight, part)
            logprobs = log_distribution.gather(-1, token_ids[part, None]).squeeze(-1)
            probabilities = log_distribution.exp()
            return logprobs, token_entropy(log_distribution, probabilities), probabilities if keeps else None

        logprobs, entropies, probabilities = zip(*map(scores, parts), strict=True)
        ctx.distributions, ctx.parts = distributions, parts
        ctx.save_for_backward(rows, weight, token_ids, *probabilities)
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy

    @staticmethod
    def backward(ctx, gradient: Float[Tensor, "token"], _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """∂ log p(token) / ∂ logits = (one-hot of the token − p) / temperature."""
        rows, weight, token_ids, *kept = ctx.saved_tensors
        distributions = ctx.distributions
        to_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        # Chunks are added up in the weight's own precision, as autograd adds up the uses of a parameter.
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None

        def add(part: slice, probabilities: Tensor | None) -> None:
            upstream = gradient[part, None]
            if probabilities is None:
                to_logits = distributions.log(rows, weight, part).exp_().mul_(-upstream)
            else:
                to_logits = probabilities * -upstream
            to_logits.scatter_add_(-1, token_ids[part, None], upstream)
            if distributions.temperature != 1.0:
                to_logits.div_(distributions.temperature)
            to_logits = to_logits.to(rows.dtype)
            if to_rows is not None:
                to_rows[part] = to_logits if weight is None else to_logits @ weight
            if to_weight is not None:
                to_weight.addmm_(to_logits.T, rows[part])

        for part, probabilities in zip(ctx.parts, kept, strict=True):
            add(part, probabilities)
        return to_rows, to_weight, None, None


def token_scores(
    rows: Float[Tensor, "token width"],
    weight: Weight,
    token_ids: Int[Tensor, "token"],
    distributions: TokenDistributions,
) -> tuple[Float[Tensor, "token"], Float[Tensor, "token"]]:
    """log π(token) of each row, with gradients for `rows` and `weight`, and the entropy in nats, without.

    Under autocast the head's product is taken as `torch.nn.Linear` would take it.
    """
    kind = rows.device.type
    if weight is not None and torch.is_autocast_enabled(kind):
        rows, weight = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (rows, weight))
    return _Scores.apply(rows, weight, token_ids, distributions)


@torch.no_grad()
def token_divergences(
    rows: Float[Tensor, "token width"],
    others: Float[Tensor, "token width"],
    weight: Weight,
    distributions: TokenDistributions,
) -> Float[Tensor, "token"]:
    """KL(p ‖ q) of each row in nats, p from `rows` and q from `others`; no gradient."""
    parts = distributions.chunks(len(rows))
    logs = ((distributions.log(rows, weight, part), distributions.log(others, weight, part)) for part in parts)
    return torch.cat([token_divergence(*both) for both in logs])
