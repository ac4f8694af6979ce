"""Binds a credit scheme, and the attention probe it may need, to the policy module; logs what the weights look like."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from lightning import Callback, Trainer
from torch import Tensor

from atrl import parallel
from atrl.credit.agreement import area_under_curve, bimodality
from atrl.credit.base import CreditScheme, Heads
from atrl.credit.bound import BoundCredit, picture_scale, spread_advantages
from atrl.credit.calibration import HeadCalibration
from atrl.credit.contrast import contrast, contrast_sums
from atrl.credit.probe import AttentionProbe
from atrl.metrics import mean_of
from atrl.module import PolicyModule
from atrl.step import StepRecord
from atrl.types import CreditOn, CreditOutput


class AnchorCreditCallback(Callback):
    """Injects attention-derived weights into the loss.

    Args:
        scheme: what the policy's forward passes showed → weights.
        processor: of the policy. Its tokenizer tells which tokens spell out what the problem's reading rule names, only
            for measuring; how it scales pictures, for schemes that mask them.
        calibration: finds the heads of a scheme that leaves them open; others need none.

    Raises:
        ValueError: as `picture_scale`.
    """

    def __init__(self, scheme: CreditScheme, processor, calibration: HeadCalibration | None = None) -> None:
        self.scheme, self._tokenizer, self._calibration = scheme, processor.tokenizer, calibration
        self._scale = picture_scale(scheme, processor)
        self._fractions: list[float] = []
        self._recalls: list[float] = []
        self._heads: Heads | None = None

    def setup(self, trainer: Trainer, pl_module: PolicyModule, stage: str) -> None:
        """Attach the probe if something is to be read, start what the scheme needs, and bind.

        A scheme whose heads are still to be found is bound when training starts, by when the sampler is.

        Raises:
            ValueError: if it needs a calibration and has none.
        """
        if self.scheme.head_search is None or self._calibration is None:
            self._bind(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What the summary averages, and the heads that were found."""
        return {"fractions": self._fractions, "recalls": self._recalls, "heads": self._heads}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take these over."""
        self._fractions, self._recalls = list(state["fractions"]), list(state["recalls"])
        self._heads = None if state["heads"] is None else tuple(tuple(pair) for pair in state["heads"])

    def on_train_start(self, trainer: Trainer, pl_module: PolicyModule) -> None:
        """Find the heads, if they are still to be found, with the policy that training starts from."""
        search = self.scheme.head_search
        if search is not None:
            if self._heads is None:
                with trainer.precision_plugin.forward_context():  # as in a training step
                    self._heads = self._calibration.choose(search, pl_module)
            self.scheme = self.scheme.with_heads(self._heads)
            self._bind(pl_module)

    def _bind(self, pl_module: PolicyModule) -> None:
        requests = self.scheme.requests
        probe = AttentionProbe(pl_module.policy, requests) if requests else None
        self.scheme.open()
        pl_module.credit = BoundCredit(self.scheme, probe, self._scale, self._tokenizer)

    def teardown(self, trainer: Trainer, pl_module: PolicyModule, stage: str) -> None:
        """Give the model its attention kernel back, and unbind."""
        self._close(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: PolicyModule, exception: BaseException) -> None:
        """Leave no process behind."""
        self._close(pl_module)

    def _close(self, pl_module: PolicyModule) -> None:
        if pl_module.credit is not None and pl_module.credit.probe is not None:
            pl_module.credit.probe.detach()
        pl_module.credit = None
        self.scheme.close()

    def on_train_batch_end(self, trainer, pl_module: PolicyModule, outputs, batch, batch_idx) -> None:
        """Log the spread of the weights and, where the problems know it, how many reading tokens are anchors."""
        step = pl_module.last_step
        metrics = weight_statistics(step.credit, step.experience.response_mask, step.experience.reading)
        if "credit/anchor_fraction" in metrics:
            self._fractions.append(metrics["credit/anchor_fraction"])
        if "credit/anchor_recall" in metrics:
            self._recalls.append(metrics["credit/anchor_recall"])
        pl_module.log_dict(metrics | anchor_contrast(step, pl_module.objective.credit_on), batch_size=1)

    def summary(self) -> dict[str, float | int | str | None]:
        """What `summary.json` says of the scheme, means over the run's steps."""
        ratio = getattr(self.scheme, "anchor_ratio", None)
        return {
            "scheme": self.scheme.name,
            "anchor_ratio": ratio if isinstance(ratio, int | float) else None,
            "num_clusters": getattr(self.scheme, "num_clusters", None),
            "anchor_fraction": mean_of(self._fractions),
            "anchor_recall": mean_of(self._recalls),
        }


def anchor_contrast(step: StepRecord, credit_on: CreditOn) -> dict[str, float]:
    """`contrast` of the global batch; nothing where the scheme names no anchors."""
    credit, batch = step.credit, step.experience
    if credit.anchors is None:
        return {}
    advantages = spread_advantages(step.advantages.flatten(), batch.response_mask, credit, credit_on=credit_on)
    sums = contrast_sums(
        credit.anchors,
        batch.response_mask,
        entropy=step.entropy,
        logprobs=step.logprobs,
        reference_logprobs=batch.reference_logprobs,
        advantages=advantages,
    )
    totals = iter(parallel.sums(value for pair in sums.values() for value in pair))
    return contrast({name: (next(totals), next(totals)) for name in sums})


def weight_statistics(
    credit: CreditOutput,
    mask: Bool[Tensor, "rollout response"],
    reading: Bool[Tensor, "rollout response"] | None = None,
) -> dict[str, float]:
    """Of the global batch: largest weight and spread of the weights, share of anchors, how bimodal the scores are.

    Where `reading` tells which tokens read the picture: the share of these that are anchors, of anchors that read, and
    the area under the curve of the scores.
    """
    weights = credit.weights[mask].double()
    anchors = torch.zeros_like(mask) if credit.anchors is None else credit.anchors & mask
    reading = torch.zeros_like(mask) if reading is None else reading & mask
    counts = [weights.sum(), weights.square().sum(), anchors.sum(), reading.sum(), (anchors & reading).sum()]
    tokens, total, squares, chosen, read, both = parallel.sums([weights.numel(), *map(float, counts)])
    variance = max(0.0, squares / tokens - (total / tokens) ** 2)
    metrics = {
        "credit/weight_max": max(parallel.gather(float(weights.max()))),
        "credit/weight_std": variance**0.5,
    }
    if credit.density is not None:
        scores = torch.cat(parallel.gather(credit.density[mask].cpu()))
        found = area_under_curve(scores, torch.cat(parallel.gather(reading[mask].cpu())))
        spread = {"credit/anchor_auc": found, "credit/bimodality": bimodality(scores)}
        metrics |= {name: value for name, value in spread.items() if value is not None}
    if credit.anchors is not None:
        metrics["credit/anchor_fraction"] = chosen / tokens
        if read:
            metrics["credit/anchor_recall"] = both / read
        if read and chosen:
            metrics["credit/anchor_precision"] = both / chosen
    return metrics
