"""Between anchors that are found and those that are known: which of their differences matters?

`oracle` makes learning faster on long answers and `visual_dependency` does not, though it finds most of the same tokens
(`experiments/LOG.md`). Its anchors miss some of the tokens that read, and hold some that don't. Each class here mends
one of the two by the generator's knowledge. For `study.py`; never a method.
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

Anchors = Bool[Tensor, "rollout response"]


@dataclass(frozen=True, kw_only=True)
class PartlyFound(VisualDependencyCredit):
    """Anchors are some mixture of those that `visual_dependency` finds and of the tokens that read."""

    needs_reading = True

    @abstractmethod
    def mix(self, found: Anchors, reading: Anchors) -> Anchors:
        """Found anchors and reading tokens → anchors."""

    @torch.no_grad()
    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Weights and anchors as of `VisualDependencyCredit`, of the mixture."""
        found, mask = super().assign(batch, evidence), batch.response_mask
        reading = torch.zeros_like(mask) if batch.reading is None else batch.reading & mask
        anchors = self.mix(found.anchors, reading)
        weights = torch.where(anchors, self.anchor_weight, self.rest_weight)
        return replace(found, weights=normalise(weights, mask), anchors=anchors)


@dataclass(frozen=True, kw_only=True)
class FoundReading(PartlyFound):
    """Those that are found and do read: none that doesn't, some are missing."""

    name = "found_reading"

    def mix(self, found: Anchors, reading: Anchors) -> Anchors:
        """Both."""
        return found & reading


@dataclass(frozen=True, kw_only=True)
class ReadingAndFound(PartlyFound):
    """All that read, and what else is found: none is missing, some don't read."""

    name = "reading_and_found"

    def mix(self, found: Anchors, reading: Anchors) -> Anchors:
        """Either."""
        return found | reading
