"""Batches of random log-probs for the tests of losses, in float64 so that differences show."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atrl.loss.aggregation import BatchTotals, ConstantLength, SequenceMean, TokenMean
from atrl.loss.cispo import ClippedWeightLoss
from atrl.loss.clipped import ClippedLoss
from atrl.loss.gspo import GspoTokenLoss, SequenceClippedLoss
from atrl.loss.sapo import SoftAdaptiveLoss
from atrl.types import Experience

AGGREGATIONS = [TokenMean(), SequenceMean(), ConstantLength()]
LOSSES = [
    ClippedLoss(),
    SequenceClippedLoss(clip_low=0.03, clip_high=0.04),
    GspoTokenLoss(clip_low=0.03, clip_high=0.04),
    SoftAdaptiveLoss(),
    ClippedWeightLoss(clip_low=0.2, clip_high=0.3),
]
"""With ranges that clip some tokens of `random_batch` and not others."""


def loss_name(loss) -> str:
    """For the ids of parametrised tests."""
    return type(loss).__name__


@dataclass(frozen=True)
class Batch:
    """What a loss is computed from; every tensor is [rollout response] and 0 outside the mask."""

    logprobs: Tensor
    old: Tensor
    reference: Tensor
    advantages: Tensor
    mask: Tensor

    @property
    def totals(self) -> BatchTotals:
        return BatchTotals(int(self.mask.sum()), int(self.mask.any(dim=1).sum()), self.mask.shape[1])

    def rows(self, index: slice) -> Batch:
        return Batch(**{name: value[index] for name, value in vars(self).items()})

    def outside(self, garbage: float) -> Batch:
        """The same with `garbage` in place of everything outside the mask."""
        filled = {name: value.masked_fill(~self.mask, garbage) for name, value in vars(self).items() if name != "mask"}
        return Batch(**filled, mask=self.mask)

    def padded(self, columns: int) -> Batch:
        """The same with further columns that nothing is trained on."""
        padding = self.mask.new_zeros(self.mask.shape[0], columns)
        return Batch(**{name: torch.cat([value, padding.to(value)], dim=1) for name, value in vars(self).items()})

    def with_token_advantages(self) -> Batch:
        generator = torch.Generator().manual_seed(7)
        weights = torch.rand(self.mask.shape, generator=generator, dtype=self.advantages.dtype) * 2
        return replace(self, advantages=self.advantages * weights)


def random_batch(lengths=(9, 1, 4, 7, 2, 6), columns: int = 9) -> Batch:
    """Ratios of about 0.5 to 1.8 and advantages of both signs; a response of length 0 has no trained token."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.arange(columns)[None] < torch.tensor(lengths)[:, None]
    noise = [torch.randn(mask.shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    old = -noise[0].abs() - 0.1
    advantages = torch.randn(len(lengths), 1, generator=generator, dtype=torch.float64).expand(mask.shape)
    values = {"logprobs": old + 0.3 * noise[1], "old": old, "reference": old + 0.3 * noise[2], "advantages": advantages}
    return Batch(**{name: value * mask for name, value in values.items()}, mask=mask)


def experience(batch: Batch, *, old: bool = True) -> Experience:
    """The batch as an objective gets it, with or without old log-probs."""
    rows, columns = batch.mask.shape
    blank = torch.zeros(rows, columns + 1, dtype=torch.long)
    return Experience(
        input_ids=blank,
        attention_mask=blank,
        response_mask=batch.mask,
        pixels=[{}] * rows,
        sampler_logprobs=batch.old,
        old_logprobs=batch.old if old else None,
        reference_logprobs=batch.reference,
    )
