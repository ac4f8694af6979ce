"""Credit by how near a token's hidden state is to the picture's (PEPO: Li et al., arXiv 2603.22847)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.credit.base import CreditScheme, normalise, top_tokens
from atrl.credit.hidden import HiddenRequest, Pooling
from atrl.credit.regions import Row
from atrl.credit.weights import check_weights
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class HiddenCosineCredit(CreditScheme):
    """Tokens whose hidden states resemble those of the image tokens get more of the credit.

    With v[t] the cosine of token t's state with the image tokens', averaged over them and over layers, the weights
    are ``w[t] = T · softmax_t(v[t] · g[t] / temperature)``. The gate is 1, or ``g[t] = 1 + gate_strength ·
    tanh(m[t] − mean m)`` with ``m = minmax(v) + minmax(entropy)`` over the response. As in PEPO: Li et al., arXiv
    2603.22847, and their code. Ours: only the outputs of decoder layers count (theirs also has the embeddings and the
    final norm), no gate by default, a response without a picture is weighed evenly, and `weights="anchors"`. Left out:
    their code moves from even weights to these over the run, ``(1 − p) + p·w[t]`` with p the share of steps done.

    Args:
        layers: numbers of the decoder layers that are read; None is all.
        row: the state that speaks for a token: its "own", as in PEPO, or the one "predicting" it (position t-1).
        pooling: over image tokens, the "mean" of the cosine, as in PEPO, or the "max".
        gate: "none", or "entropy" to favour tokens that are both near the picture and uncertain.
        gate_strength: how far the gate moves from 1.
        temperature: of the softmax; a lower one favours the nearest tokens more.
        weights: the "softmax", or "anchors": the anchor_ratio · T tokens of the largest v·g get `anchor_weight`, the
            rest `rest_weight`.
        anchor_ratio: share of a response's tokens that are anchors, marked for metrics in either form.
        anchor_weight: of anchors, before the weights are scaled to mean 1.
        rest_weight: of all other tokens, likewise.
    """

    layers: tuple[int, ...] | None = None
    row: Row = "own"
    pooling: Pooling = "mean"
    gate: Literal["none", "entropy"] = "none"
    gate_strength: float = 0.05
    temperature: float = 1.0
    weights: Literal["softmax", "anchors"] = "softmax"
    anchor_ratio: float = 0.15
    anchor_weight: float = 3.0
    rest_weight: float = 1.0

    needs_whole_rows = True
    name = "hidden_cosine"

    def __post_init__(self) -> None:
        check_weights(self.anchor_ratio, self.anchor_weight, self.rest_weight)
        if self.temperature <= 0:
            raise ValueError(f"credit.temperature must be positive, got {self.temperature}: PEPO uses 1 to 1.8")
        if not 0 <= self.gate_strength < 1:
            raise ValueError(f"credit.gate_strength must be in [0, 1), got {self.gate_strength}: PEPO uses 0.05")

    @property
    def requests(self) -> tuple[HiddenRequest, ...]:
        """One reading of the hidden states."""
        layers = None if self.layers is None else tuple(self.layers)
        return (HiddenRequest(layers=layers, row=self.row, pooling=self.pooling),)

    @torch.no_grad()
    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Weights, anchors and gated cosines of every response; without a picture all tokens weigh the same."""
        mask = batch.response_mask
        score = torch.where(mask, evidence.read[self.requests[0]].float(), 0.0)
        if self.gate == "entropy":
            mixed = minmax(score, mask) + minmax(torch.where(mask, evidence.entropy.float(), 0.0), mask)
            centred = mixed - mixed.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp_min(1)
            score = score * (1 + self.gate_strength * centred.tanh()) * mask
        anchors = top_tokens(score, mask, ratio=self.anchor_ratio)
        if self.weights == "anchors":
            weights = torch.where(anchors, self.anchor_weight, self.rest_weight)
        else:
            # Relative to the largest, the exponentials neither overflow nor all vanish.
            logits = (score / self.temperature).masked_fill(~mask, -torch.inf)
            weights = (logits - logits.amax(dim=1, keepdim=True)).exp()
        return CreditOutput(normalise(weights, mask), anchors=anchors, density=score)


def minmax(
    values: Float[Tensor, "rollout response"], mask: Bool[Tensor, "rollout response"]
) -> Float[Tensor, "rollout response"]:
    """``(x − min)/(max − min)`` over each response's tokens; 0 where all are equal, and on padding."""
    low = values.masked_fill(~mask, torch.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)
    return torch.where(mask & (high > low), (values - low) / (high - low), 0.0)
