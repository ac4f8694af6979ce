"""Of the anchors that are found and don't read, which cost what perfect ones gain: digits, or words?

Anchors that are found and do read (`partly_found.FoundReading`) make learning faster on long answers; with those that
are found and don't read, nothing is left of it (`experiments/LOG.md`). These are of two kinds: digits that repeat in a
calculation what was read, and words. Each class here lets one of the two back in. For `study.py`; never a method.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from atrl.credit.base import normalise
from atrl.credit.visual_dependency import VisualDependencyCredit
from atrl.types import CreditOutput, Evidence, Experience

DIGITS = range(15, 25)
"""Ids of the tokens "0" to "9", of which the checkpoints' tokenizer has no other with a digit."""
Tokens = Bool[Tensor, "rollout response"]


@dataclass(frozen=True, kw_only=True)
class FoundWithSome(VisualDependencyCredit):
    """Anchors are those that `visual_dependency` finds and that read, and one kind of those that don't."""

    needs_reading = True

    @abstractmethod
    def kind(self, digits: Tokens) -> Tokens:
        """Which tokens are of the kind that is let in, by which are digits."""

    @torch.no_grad()
    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Weights and anchors as of `VisualDependencyCredit`, without the other kind."""
        found, mask = super().assign(batch, evidence), batch.response_mask
        reading = torch.zeros_like(mask) if batch.reading is None else batch.reading
        said = batch.input_ids[:, batch.prompt_length :]
        digits = torch.isin(said, torch.tensor(DIGITS, device=said.device))
        anchors = found.anchors & (reading | self.kind(digits))
        weights = torch.where(anchors, self.anchor_weight, self.rest_weight)
        return replace(found, weights=normalise(weights, mask), anchors=anchors)


@dataclass(frozen=True, kw_only=True)
class FoundWithDigits(FoundWithSome):
    """What is found, but for the words that don't read."""

    name = "found_with_digits"

    def kind(self, digits: Tokens) -> Tokens:
        """Digits."""
        return digits


@dataclass(frozen=True, kw_only=True)
class FoundWithWords(FoundWithSome):
    """What is found, but for the digits that don't read."""

    name = "found_with_words"

    def kind(self, digits: Tokens) -> Tokens:
        """All else: words, parts of them, and marks."""
        return ~digits
