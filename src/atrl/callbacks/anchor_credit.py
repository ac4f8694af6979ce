"""Binds a credit scheme, and the attention probe it may need, to the policy module; logs what the weights look like."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from atrl import parallel
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
        probe = AttentionProbe(pl_module.policy, requests) if requests else None
        self.scheme.open()
        pl_module.credit = BoundCredit(self.scheme, probe, self._scale)

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
        mask = step.experience.response_mask
        reading = reading_mask(step.groups, self._tokenizer, mask)
        metrics = weight_statistics(step.credit, mask, reading)
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
    """Of the global batch: largest weight, standard deviation of the weights, share of the tokens that are anchors;
    where `reading` tells which tokens read the picture, the share of these that are anchors, and of anchors that read.
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
    if credit.anchors is not None:
        metrics["credit/anchor_fraction"] = chosen / tokens
        if read:
            metrics["credit/anchor_recall"] = both / read
            metrics["credit/anchor_precision"] = both / max(chosen, 1.0)
    return metrics


def reading_mask(groups, tokenizer, mask: Bool[Tensor, "rollout response"]) -> Bool[Tensor, "rollout response"] | None:
    """Which response tokens spell out what the reading rules of their problems name; None if no problem has a rule."""
    if all(group.prompt.problem.reading is None for group in groups):
        return None
    reading = torch.zeros(mask.shape, dtype=torch.bool)
    row = 0
    for group in groups:
        rule = group.prompt.problem.reading
        for rollout in group.rollouts:
            if rule is not None:
                reading[row, : len(rollout.token_ids)] = torch.tensor(
                    read_tokens(rollout.token_ids, rule.spans, tokenizer), dtype=torch.bool
                )
            row += 1
    return reading.to(mask.device) & mask


def read_tokens(token_ids: list[int], spans_of, tokenizer) -> list[bool]:
    """Whether each token holds a character of the spans that `spans_of(text)` finds in the decoded response.

    Tokens are decoded one by one, so that a token's place in the text is exact; a character that several byte tokens
    share is never part of a reading.
    """
    pieces = tokenizer.batch_decode([[token] for token in token_ids])
    ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0).tolist()
    spans = spans_of("".join(pieces))
    return [
        any(start < end and stop > end - len(piece) for start, stop in spans)
        for piece, end in zip(pieces, ends, strict=True)
    ]
