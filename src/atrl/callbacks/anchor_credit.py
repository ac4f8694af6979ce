"""Binds a credit scheme, and the attention probe it may need, to the policy module; logs what the weights look like."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from atrl import parallel
from atrl.credit.agreement import area_under_curve, bimodality
from atrl.credit.base import CreditScheme
from atrl.credit.bound import BoundCredit, PictureScale
from atrl.credit.probe import AttentionProbe
from atrl.metrics import mean_of
from atrl.module import PolicyModule
from atrl.types import CreditOutput


class AnchorCreditCallback(Callback):
    """Injects attention-derived weights into the loss.

    Args:
        scheme: what the policy's forward passes showed → weights.
        processor: of the policy. Its tokenizer tells which tokens spell out what the problem's reading rule names, only
            for measuring; how it scales pictures, for schemes that mask them.
    """

    def __init__(self, scheme: CreditScheme, processor) -> None:
        self.scheme, self._tokenizer = scheme, processor.tokenizer
        pictures = processor.image_processor
        self._scale = PictureScale(tuple(pictures.image_mean), tuple(pictures.image_std))
        self._fractions: list[float] = []
        self._recalls: list[float] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the probe if something is to be read, start what the scheme needs, and bind."""
        assert isinstance(pl_module, PolicyModule)
        requests = self.scheme.requests
        if requests and self.scheme.scope == "batch" and trainer.world_size > 1:
            raise ValueError(
                f"credit={self.scheme.name} compares rollouts and reads layers, which works in one process only: set "
                "trainer.devices=1 and trainer.num_nodes=1"
            )
        probe = AttentionProbe(pl_module.policy, requests) if requests else None
        self.scheme.open()
        pl_module.credit = BoundCredit(self.scheme, probe, self._scale, self._tokenizer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the model its attention kernel back, and unbind."""
        self._close(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no process behind."""
        self._close(pl_module)

    def _close(self, pl_module: LightningModule) -> None:
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
        pl_module.log_dict(metrics, batch_size=1)

    def summary(self) -> dict[str, float | int | str | None]:
        """What `summary.json` says of the scheme, means over the run's steps."""
        return {
            "scheme": self.scheme.name,
            "anchor_ratio": getattr(self.scheme, "anchor_ratio", None),
            "num_clusters": getattr(self.scheme, "num_clusters", None),
            "anchor_fraction": mean_of(self._fractions),
            "anchor_recall": mean_of(self._recalls),
        }


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
    counts = [weights.numel(), weights.sum(), weights.square().sum(), anchors.sum(), reading.sum()]
    counts.append((anchors & reading).sum())
    tokens, total, squares, chosen, read, both = parallel.sums(float(count) for count in counts)
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
            metrics["credit/anchor_precision"] = both / max(chosen, 1.0)
    return metrics
