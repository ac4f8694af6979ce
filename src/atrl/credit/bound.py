"""A credit scheme at work in a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl import parallel
from atrl.credit.masking import PictureScale, mask_pixels, mask_scale
from atrl.credit.paragraphs import paragraph_numbers
from atrl.credit.promises import checked
from atrl.credit.reading import reading_mask
from atrl.forward import merge_evidence
from atrl.splitting import join_rows
from atrl.types import CreditOn, CreditOutput, Evidence, Experience, MaskedView, RolloutGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    from atrl.credit.base import CreditScheme
    from atrl.credit.probe import AttentionProbe


Begun = Callable[[], list[CreditOutput]]
"""Gives what each part of a scheme that needs no other piece of the batch assigns to this one, when it is called."""


def picture_scale(scheme: CreditScheme, processor: ProcessorMixin) -> PictureScale:
    """How `processor` scales what `scheme` may mask.

    Raises:
        ValueError: as `mask_scale`, if the scheme masks patches.
    """
    if scheme.picture_mask is not None:
        return mask_scale(processor, f"credit={scheme.name}", "another scheme", scheme.picture_mask.by)
    pictures = processor.image_processor
    return PictureScale(tuple(pictures.image_mean), tuple(pictures.image_std))


@dataclass(frozen=True, slots=True)
class BoundCredit:
    """A credit scheme and what it needs of the model.

    Args:
        scheme: evidence → weights.
        probe: reads what the scheme requests from the policy's layers; None if it requests nothing.
        scale: of the pictures' pixels, for masking them.
        tokenizer: of the policy, to find the tokens that read the picture, and paragraphs.
    """

    scheme: CreditScheme
    probe: AttentionProbe | None
    scale: PictureScale
    tokenizer: PreTrainedTokenizerBase

    def prepare(self, experience: Experience, groups: Sequence[RolloutGroup]) -> Experience:
        """`experience` with the tokens that read, where known, and with what the scheme wants: paragraphs, masked
        pictures."""
        reading = reading_mask(groups, self.tokenizer, experience.response_mask)
        if any(parallel.gather(reading is not None)) and reading is None:
            reading = torch.zeros_like(experience.response_mask)  # only other ranks' problems have a rule
        experience = replace(experience, reading=reading)
        if self.scheme.needs_paragraphs:
            paragraphs = paragraph_numbers(groups, self.tokenizer, experience.response_mask)
            experience = replace(experience, paragraphs=paragraphs)
        mask = self.scheme.picture_mask
        if mask is None:
            return experience
        masked = mask_pixels(experience.pixels, experience.keys, mask, mean=self.scale.mean, std=self.scale.std)
        return replace(experience, masked_pixels=masked)

    def begin(self, piece: Experience, evidence: Evidence) -> Begun:
        """Start on what can be said of one piece of a batch without the others, which `assign` collects."""
        finishing = [(part.begin(piece, evidence), part) for part in self.scheme.alone]
        return lambda: [checked(finish(), piece.response_mask, part) for finish, part in finishing]

    def weigh(self, piece: Experience, evidence: Evidence) -> Callable[[], CreditOutput]:
        """Start on the weights of one piece of a batch, by a scheme that compares none; the returned call waits."""
        finish = self.scheme.begin(piece, evidence)
        return lambda: checked(finish(), piece.response_mask, self.scheme)

    def assign(self, experience: Experience, evidence: Sequence[Evidence], begun: Sequence[Begun]) -> CreditOutput:
        """Weights of this rank's whole batch from the evidence of its pieces, and from what was begun on each.

        A scheme that compares rollouts sees those of all ranks.
        """
        width = experience.response_length
        pieces = [finish() for finish in begun]
        parts = [join_credit(outputs, width) for outputs in zip(*pieces, strict=True)]
        if self.scheme.scope == "response":
            return parts[0]
        together = _of_all_ranks(experience, merge_evidence(evidence, width))
        output = self.scheme.compare(*together, [_credit_of_all_ranks(part) for part in parts])
        output = checked(output, together[0].response_mask, self.scheme)
        before = sum(parallel.gather(experience.size)[: parallel.rank()])
        return output.rows(slice(before, before + experience.size), width)


def _of_all_ranks(experience: Experience, evidence: Evidence) -> tuple[Experience, Evidence]:
    """What a scheme may compare: masks, keys, reading tokens, paragraphs and numbers per token, no pictures."""
    if parallel.world_size() == 1:
        return experience, evidence
    rows = parallel.gather_rows
    mask = rows(experience.response_mask.float()) > 0
    reading = None
    if any(parallel.gather(experience.reading is not None)):  # a rank whose problems have no rule takes part
        own = torch.zeros_like(experience.response_mask) if experience.reading is None else experience.reading
        reading = rows(own.float()) > 0
    paragraphs = experience.paragraphs
    if paragraphs is not None:  # the scheme asks for them, on every rank; columns are filled up with 0
        paragraphs = rows(paragraphs + 1) - 1
    blank = torch.zeros(len(mask), mask.shape[1] + 1, dtype=torch.long, device=mask.device)
    together = Experience(
        input_ids=blank,
        attention_mask=blank,
        response_mask=mask,
        pixels=[{}] * len(mask),
        sampler_logprobs=rows(experience.sampler_logprobs),
        keys=[key for keys in parallel.gather(experience.keys) for key in keys],
        reading=reading,
        paragraphs=paragraphs,
    )
    masked = evidence.masked and MaskedView(rows(evidence.masked.logprobs), rows(evidence.masked.divergence))
    return together, Evidence(rows(evidence.logprobs), rows(evidence.entropy), {}, masked)


def _credit_of_all_ranks(part: CreditOutput) -> CreditOutput:
    """A scheme's outputs have the same fields on every rank."""
    rows = parallel.gather_rows
    return CreditOutput(
        weights=rows(part.weights),
        anchors=None if part.anchors is None else rows(part.anchors.float()) > 0,
        density=None if part.density is None else rows(part.density),
        trajectory_scale=None if part.trajectory_scale is None else rows(part.trajectory_scale),
    )


def join_credit(parts: Sequence[CreditOutput | None], width: int) -> CreditOutput | None:
    """The outputs for consecutive pieces of a batch as one, with `width` columns."""
    if parts[0] is None:
        return None

    def joined(name: str) -> Tensor | None:
        pieces = [getattr(part, name) for part in parts]
        return None if pieces[0] is None else join_rows(pieces, width)

    scales = [part.trajectory_scale for part in parts]
    scale = None if scales[0] is None else torch.cat(scales)
    return CreditOutput(joined("weights"), joined("anchors"), joined("density"), scale)


def spread_advantages(
    advantages: Float[Tensor, "rollout"],
    mask: Bool[Tensor, "rollout response"],
    credit: CreditOutput | None,
    *,
    credit_on: CreditOn = "all",
) -> Float[Tensor, "rollout response"]:
    """``advantage[b,t] = weight[b,t] · scale[b] · advantage[b]``: the one place where credit enters.

    AT-RL: Jiao et al., arXiv 2602.11455. Without credit every token gets its rollout's advantage; so does every token
    of a rollout that `credit_on` leaves out by the sign of its advantage (ours), but for the scale.
    """
    per_token = advantages[:, None].expand(mask.shape)
    if credit is None:
        return per_token
    if credit.trajectory_scale is not None:
        per_token = per_token * credit.trajectory_scale[:, None]
    weighed = {"all": torch.ones_like(mask[:, 0]), "positive": advantages > 0, "negative": advantages < 0}[credit_on]
    return torch.where(weighed[:, None], credit.weights, mask.float()) * per_token
