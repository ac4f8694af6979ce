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
from atrl.draws import Draws
from atrl.models.head import read_at_head
from atrl.splitting import join_rows
from atrl.timing import PhaseTimer
from atrl.types import Evidence, Experience, KeptTokens, MaskedView
from atrl.vocabulary import TokenDistributions, token_divergences, token_scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from atrl.credit.base import CreditScheme
    from atrl.credit.bound import BoundCredit


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """What one pass said of a micro-batch."""

    logprobs: Float[Tensor, "rollout response"]
    """Of the sampled tokens, with a gradient unless gradients are off; 0 on padding."""
    entropy: Float[Tensor, "rollout response"]
    """In nats, no gradient; 0 on padding."""
    evidence: Evidence | None
    """For the credit scheme; None if it was not asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What a model says of each trained token of a batch; 0 on padding."""

    logprobs: Float[Tensor, "rollout response"]
    entropy: Float[Tensor, "rollout response"]
    """In nats, no gradient."""
    rows: Float[Tensor, "token width"]
    """What the vocabulary head was given for them, no gradient."""
    divergence: Float[Tensor, "rollout response"] | None
    """KL(of other rows ‖ of these) in nats, if others were given."""


@dataclass(frozen=True, kw_only=True)
class ForwardPass:
    """How the policy is run: with the distribution that rollouts are sampled from.

    Args:
        temperature: rollouts are sampled at.
        banned_ids: tokens that are never sampled, and so have probability 0.
        chunk: tokens whose logits exist at a time; None for those of the whole batch.
        share_prompts: each prompt of a batch is run once and not with each of its responses.
        timer: what credit costs is counted as its own phase.
    """

    temperature: float
    banned_ids: tuple[int, ...]
    chunk: int | None = None
    share_prompts: bool = False
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
        draws = Draws.of(batch.input_ids.device)
        probe = credit.probe if credit is not None and read else None
        with nullcontext() if probe is None else probe.capture(batch) as recorder:
            assert recorder is None or not (self.share_prompts and recorder.listens), (
                f"credit scheme {credit.scheme.name} reads hidden states, and prompts are run apart: it must say "
                "needs_whole_rows = True"
            )
            scores = self.scores(policy, batch)
        if recorder is not None:  # it read while the model ran
            self.timer.recount(recorder.seconds, to="credit")
        if scheme is None or not (read or scheme.has_auxiliary_loss):
            return Forward(scores.logprobs, scores.entropy, None)
        # Without a gradient there is no auxiliary loss, and weights that are 1 look at nothing.
        masking = [factor for factor in scheme.factors if factor.picture_mask is not None]
        masked = any(torch.is_grad_enabled() or not factor.is_uniform for factor in masking)
        with self.timer.phase("credit"):
            evidence = Evidence(
                logprobs=scores.logprobs.detach(),
                entropy=scores.entropy,
                read={} if recorder is None else recorder.results(),
                masked=self._masked(policy, batch, scores, scheme, draws) if masked else None,
            )
        return Forward(scores.logprobs, scores.entropy, evidence)

    def logprobs(
        self, model: PreTrainedModel, batch: Experience
    ) -> tuple[Float[Tensor, "rollout response"], Float[Tensor, "rollout response"]]:
        """Log-probs of the response tokens and the entropies of their distributions, 0 on padding."""
        scores = self.scores(model, batch)
        return scores.logprobs, scores.entropy

    def scores(
        self, model: PreTrainedModel, batch: Experience, against: Float[Tensor, "token width"] | None = None
    ) -> Scores:
        """What `model` says of `batch`; with the divergence from what the rows `against` say of the same tokens."""
        distributions = TokenDistributions(
            temperature=self.temperature,
            banned_ids=self.banned_ids,
            kept=None if batch.kept is None else _joined(batch.kept),
            chunk=self.chunk,
        )
        token_ids = batch.input_ids[:, batch.prompt_length :][batch.response_mask]
        seen: list[Tensor] = []

        def read(rows: Tensor, weight: Tensor | None) -> Float[Tensor, "token value"]:
            seen.append(rows.detach())
            values = list(token_scores(rows, weight, token_ids, distributions))
            if against is not None:
                values.append(token_divergences(against, rows, weight, distributions))
            return torch.stack(values, dim=-1)

        logprobs, *others = read_at_head(model, batch, read, share_prompts=self.share_prompts).unbind(-1)
        entropy, divergence = [*(other.detach() for other in others), None][:2]
        return Scores(logprobs, entropy, seen[0], divergence)

    def _masked(
        self, policy: PreTrainedModel, batch: Experience, scores: Scores, scheme: CreditScheme, draws: Draws
    ) -> MaskedView:
        """With the dropout of the pass that gave `scores`, which began at `draws`: the picture alone is to differ."""
        assert batch.masked_pixels is not None, "the batch was built without the masked pictures that credit needs"
        with nullcontext() if scheme.needs_masked_gradient else torch.no_grad(), draws.again():
            other = self.scores(policy, replace(batch, pixels=batch.masked_pixels), against=scores.rows)
        return MaskedView(logprobs=other.logprobs, divergence=other.divergence)


def _joined(kept: Sequence[KeptTokens]) -> KeptTokens:
    """Those of all rollouts, one after the other."""
    return KeptTokens(torch.cat([tokens.ids for tokens in kept]), torch.cat([tokens.counts for tokens in kept]))


def merge_evidence(parts: Sequence[Evidence], width: int) -> Evidence:
    """The numbers per token of consecutive pieces, at least one, as those of one batch with `width` columns.

    What was read from layers is left out.
    """
    masked = None
    if parts[0].masked is not None:
        masked = MaskedView(
            logprobs=join_rows([part.masked.logprobs for part in parts], width),
            divergence=join_rows([part.masked.divergence for part in parts], width),
        )
    return Evidence(
        logprobs=join_rows([part.logprobs for part in parts], width),
        entropy=join_rows([part.entropy for part in parts], width),
        read={},
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
