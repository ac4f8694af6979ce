"""One forward pass of the policy over a micro-batch: log-probs, entropy, and what a credit scheme may look at."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from atrl.credit.attention import AttentionCapture
from atrl.logprobs import process_logits, token_divergence, token_entropy, token_logprobs
from atrl.models.policy import response_logits
from atrl.timing import PhaseTimer
from atrl.types import Evidence, Experience, MaskedView

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from atrl.credit.base import CreditScheme
    from atrl.credit.bound import BoundCredit
    from atrl.credit.probe import AttentionProbe


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """What one pass said of a micro-batch."""

    logprobs: Float[Tensor, "rollout response"]
    """Of the sampled tokens, with a gradient unless gradients are off; 0 on padding."""
    entropy: Float[Tensor, "rollout response"]
    """In nats, no gradient; 0 on padding."""
    evidence: Evidence | None
    """For the credit scheme; None if it was not asked for."""


@dataclass(frozen=True, kw_only=True)
class ForwardPass:
    """How the policy is run: with the distribution that rollouts are sampled from.

    Args:
        temperature: rollouts are sampled at.
        banned_ids: tokens that are never sampled, and so have probability 0.
        timer: what credit costs is counted as its own phase.
    """

    temperature: float
    banned_ids: tuple[int, ...]
    timer: PhaseTimer = field(default_factory=PhaseTimer)

    def __call__(
        self, policy: PreTrainedModel, batch: Experience, credit: BoundCredit | None, *, read: bool
    ) -> Forward:
        """Run `policy` on `batch`; with `read` also collect the evidence that `credit`'s scheme asks for.

        Without `read` the scheme's auxiliary loss, if it has one, still gets its view of the masked picture.

        Raises:
            AssertionError: if the scheme names a `picture_mask` and `batch` has no masked pictures, which
                `BoundCredit.prepare` adds; if the model's attention does not reach the probe.
            ValueError: if a layer or head that the scheme names is not there.
        """
        scheme = None if credit is None else credit.scheme
        probe = credit.probe if credit is not None and read else None
        with nullcontext() if probe is None else probe.capture(batch) as recorder:
            logprobs, processed = self.logprobs(policy, batch)
        if recorder is not None:  # it read while the model ran
            self.timer.recount(recorder.seconds, to="credit")
        with torch.no_grad():
            entropy = torch.where(batch.response_mask, token_entropy(processed), 0.0)
        if scheme is None or not (read or scheme.has_auxiliary_loss):
            return Forward(logprobs, entropy, None)
        with self.timer.phase("credit"):
            evidence = Evidence(
                logprobs=logprobs.detach(),
                entropy=entropy,
                read={} if recorder is None else recorder.results(),
                masked=None if scheme.picture_mask is None else self._masked(policy, batch, processed, scheme),
            )
        return Forward(logprobs, entropy, evidence)

    def logprobs(
        self, model: PreTrainedModel, batch: Experience
    ) -> tuple[Float[Tensor, "rollout response"], Float[Tensor, "rollout response vocabulary"]]:
        """Log-probs of the response tokens, 0 on padding, and the logits that they come from, processed."""
        processed = process_logits(
            response_logits(model, batch), temperature=self.temperature, banned_ids=self.banned_ids
        )
        # Padding may repeat a banned id, whose log-prob of -inf would turn a masked loss into NaN.
        logprobs = token_logprobs(processed, batch.input_ids[:, batch.prompt_length :])
        return torch.where(batch.response_mask, logprobs, 0.0), processed

    def _masked(
        self, policy: PreTrainedModel, batch: Experience, processed: Tensor, scheme: CreditScheme
    ) -> MaskedView:
        assert batch.masked_pixels is not None, "the batch was built without the masked pictures that credit needs"
        with nullcontext() if scheme.needs_masked_gradient else torch.no_grad():
            logprobs, other = self.logprobs(policy, replace(batch, pixels=batch.masked_pixels))
        with torch.no_grad():
            divergence = torch.where(batch.response_mask, token_divergence(processed, other), 0.0)
        return MaskedView(logprobs=logprobs, divergence=divergence)


def merge_evidence(parts: Sequence[Evidence], probe: AttentionProbe | None) -> Evidence:
    """The evidence of consecutive micro-batches, at least one, as that of one batch."""
    masked = None
    if parts[0].masked is not None:
        masked = MaskedView(
            logprobs=torch.cat([part.masked.logprobs for part in parts]),
            divergence=torch.cat([part.masked.divergence for part in parts]),
        )
    return Evidence(
        logprobs=torch.cat([part.logprobs for part in parts]),
        entropy=torch.cat([part.entropy for part in parts]),
        read={} if probe is None else probe.merge([part.read for part in parts]),
        masked=masked,
    )


def attention_maps(evidence: Evidence | None, first: int, wanted: Sequence[int]) -> dict[int, Tensor]:
    """By rollout, of those `wanted` that this micro-batch holds: mass of each token on each image token, any head.

    `first` is the number of the micro-batch's first rollout. Nothing where no attention was read.
    """
    captures = [] if evidence is None else [v for v in evidence.read.values() if isinstance(v, AttentionCapture)]
    if not captures:
        return {}
    image = captures[0].image
    return {row: image[row - first].clone().cpu() for row in wanted if first <= row < first + len(image)}
