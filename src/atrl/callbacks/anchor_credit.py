"""Binds a credit scheme, and the attention probe it may need, to the policy module; logs what the weights look like."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from atrl.credit.base import CreditScheme
from atrl.credit.probe import AttentionProbe
from atrl.metrics import mean_of
from atrl.module import BoundCredit, PolicyModule
from atrl.types import CreditOutput


class AnchorCreditCallback(Callback):
    """Injects attention-derived weights into the loss.

    Args:
        scheme: rollouts and attention → weights.
        tokenizer: tells which tokens spell out what the problem's reading rule names; only for measuring.
    """

    def __init__(self, scheme: CreditScheme, tokenizer) -> None:
        self.scheme, self._tokenizer = scheme, tokenizer
        self._fractions: list[float] = []
        self._recalls: list[float] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the probe if the scheme needs one, and bind."""
        assert isinstance(pl_module, PolicyModule)
        probe = AttentionProbe(pl_module.policy) if self.scheme.needs_attention else None
        pl_module.credit = BoundCredit(self.scheme, probe)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the model its attention kernel back, and unbind."""
        if pl_module.credit is not None and pl_module.credit.probe is not None:
            pl_module.credit.probe.detach()
        pl_module.credit = None

    def on_train_batch_end(self, trainer, pl_module: PolicyModule, outputs, batch, batch_idx) -> None:
        """Log the spread of the weights and, where the problems know it, how many reading tokens are anchors."""
        step = pl_module.last_step
        metrics = weight_statistics(step.credit, step.experience.response_mask)
        if step.credit.anchors is not None:
            reading = reading_mask(step.groups, self._tokenizer, step.experience.response_mask)
            if reading is not None and bool(reading.any()):
                metrics["credit/anchor_recall"] = float((step.credit.anchors & reading).sum() / reading.sum())
                self._recalls.append(metrics["credit/anchor_recall"])
            self._fractions.append(metrics["credit/anchor_fraction"])
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


def weight_statistics(credit: CreditOutput, mask: Bool[Tensor, "rollout response"]) -> dict[str, float]:
    """Largest weight, standard deviation of the weights, and share of the trained tokens that are anchors."""
    weights = credit.weights[mask]
    metrics = {"credit/weight_max": float(weights.max()), "credit/weight_std": float(weights.std(correction=0))}
    if credit.anchors is not None:
        metrics["credit/anchor_fraction"] = float(credit.anchors[mask].float().mean())
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
