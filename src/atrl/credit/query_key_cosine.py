"""Credit by how near a token's query is to the picture's keys, span by span (in the manner of KAWHI)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atrl.credit.base import normalise
from atrl.credit.clustering import ClusteringCredit, filled
from atrl.credit.connectivity import head_contrast, top_heads_mean
from atrl.credit.hidden import Pooling
from atrl.credit.query_key import Layers, QueryKeyCapture, QueryKeyRequest
from atrl.credit.regions import Row
from atrl.credit.spans import ScoredTokens, Smoothing, SpanSettings, SpanWeights, weigh_spans
from atrl.credit.weights import check_count, check_weights
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class QueryKeyCosineCredit(ClusteringCredit):
    """Spans of tokens whose queries point at the picture's keys get more of the credit.

    c[t]: the cosine of token t's query with the image tokens' keys, after rotary embedding, pooled over them and
    reduced over heads; a span's score is the mean of its tokens'. A head counts for the tokens that its layer shows an
    image token: where sliding windows hide the whole picture from a token in every layer that is read, it gets the
    least score of its response, so that it never stands out. KAWHI's (Han et al., arXiv 2603.27375): the cosine,
    that some heads are the visual ones, means over spans, `smoothing="paragraph"` and `weights="softmax"`. Ours, and
    the defaults: all layers, the largest cosine of any image token, heads by contrast, windows and clusters, and a
    line for the weights. `KawhiCredit` has the options that are nearest to the paper's. `workers`, which matters
    where spans are clusters, is that of `ClusteringCredit`.

    Args:
        layers: numbers of the layers that are read, or the "last" one; None is all.
        head_numbers: numbers of the heads that are read, the same in each layer, as KAWHI names them; None is all.
        row: the query that speaks for a token: "predicting" it (position t-1) or its "own".
        pooling: over image tokens, the "max" or the "mean" of the cosine.
        reduction: over heads, "top_heads" or the "mean" (see `connectivity.head_contrast`).
        top_heads: how many heads `reduction="top_heads"` averages.
        smoothing: a span is a "window" of consecutive tokens, a "cluster" (METIS) of tokens near the same image
            tokens, a "paragraph" (see `paragraphs_of`), or each token alone ("none").
        window: tokens in a window.
        num_clusters: METIS parts; a response of T tokens gets at most T/2.
        weights: "load_map" maps a span's score linearly into `rest_weight` … `anchor_weight`; "softmax" goes the
            same way by a span's share of a softmax (see `softmax_weights`); "anchors" gives those two weights to the
            anchor_ratio · T tokens of the highest spans, and to the rest.
        temperature: of the softmax; a lower one tells spans further apart.
        mixing: how much of the softmax is an even share instead.
        anchor_ratio: share of a response's tokens that are anchors, marked for metrics in every form.
        anchor_weight: of anchors, before the weights are scaled to mean 1.
        rest_weight: of all other tokens, likewise.
        seed: of METIS.
    """

    layers: Layers = None
    head_numbers: tuple[int, ...] | None = None
    row: Row = "predicting"
    pooling: Pooling = "max"
    reduction: Literal["mean", "top_heads"] = "top_heads"
    top_heads: int = 4
    smoothing: Smoothing = "window"
    window: int = 16
    num_clusters: int = 8
    weights: SpanWeights = "load_map"
    temperature: float = 0.1
    mixing: float = 0.1
    anchor_ratio: float = 0.15
    anchor_weight: float = 3.0
    rest_weight: float = 1.0
    seed: int = 0

    name = "query_key_cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.anchor_ratio, self.anchor_weight, self.rest_weight)
        check_count("top_heads", self.top_heads, usual=4)
        check_count("window", self.window, usual=16)
        check_count("num_clusters", self.num_clusters, usual=8)
        if self.temperature <= 0:
            raise ValueError(f"credit.temperature must be positive, got {self.temperature}: try 0.1")
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"credit.mixing must be in [0, 1], got {self.mixing}: try 0.1")

    @property
    def needs_paragraphs(self) -> bool:
        """Where they are the spans."""
        return self.smoothing == "paragraph"

    @property
    def requests(self) -> tuple[QueryKeyRequest, ...]:
        """One reading of queries and keys, with image rows only if they are clustered."""
        return (
            QueryKeyRequest(
                layers=self.layers if self.layers is None or self.layers == "last" else tuple(self.layers),
                heads=None if self.head_numbers is None else tuple(self.head_numbers),
                row=self.row,
                pooling=self.pooling,
                detail=self.smoothing == "cluster",
            ),
        )

    @property
    def cuts(self) -> bool:
        """Windows and paragraphs are no clusters."""
        return self.smoothing == "cluster"

    @property
    def settings(self) -> SpanSettings:
        """The options that matter once queries and keys are read."""
        return SpanSettings(**{option.name: getattr(self, option.name) for option in fields(SpanSettings)})

    @torch.no_grad()
    def begin(self, batch: Experience, evidence: Evidence) -> Callable[[], CreditOutput]:
        """Start to cut each response into spans; without a picture all its tokens weigh the same."""
        capture: QueryKeyCapture = evidence.read[self.requests[0]]
        mask = batch.response_mask
        score = self._score(capture, mask)
        reading = score.any(dim=1).nonzero()[:, 0].tolist()
        paragraphs = None
        if self.needs_paragraphs:
            assert batch.paragraphs is not None, "the batch was built without the paragraphs that credit needs"
            paragraphs = batch.paragraphs
        tokens = _tokens(capture, score, mask, paragraphs, reading)
        weighed = self._background.submit(weigh_spans, tokens, self.settings)

        def finish() -> CreditOutput:
            found = weighed()
            weights = filled(mask.float(), reading, [own.weights for own in found])
            anchors = filled(torch.zeros_like(mask), reading, [own.anchors for own in found])
            density = filled(score, reading, [own.load for own in found])
            return CreditOutput(normalise(weights, mask), anchors=anchors, density=density)

        return finish

    def _score(
        self, capture: QueryKeyCapture, mask: Bool[Tensor, "rollout response"]
    ) -> Float[Tensor, "rollout response"]:
        top_heads = None if self.reduction == "mean" else self.top_heads
        if capture.seen is not None:
            reduced = seeing_heads_mean(capture.score, mask, capture.seen, top_heads=top_heads)
        elif top_heads is None:
            reduced = capture.score.mean(dim=1)
        else:
            reduced = top_heads_mean(capture.score, mask, top_heads=top_heads)
        return torch.where(mask, reduced.float(), 0.0)


def seeing_heads_mean(
    scores: Float[Tensor, "rollout head response"],
    response_mask: Bool[Tensor, "rollout response"],
    seen: Bool[Tensor, "rollout head response"],
    *,
    top_heads: int | None,
) -> Float[Tensor, "rollout response"]:
    """The mean over the heads in which a token sees the picture, or the `top_heads` of them with the most contrast;

    the least score of the response for a token that sees it in none, and 0 where no token sees it. Cosines are often
    all negative, so that the 0 of a blind token would rank above them. The contrast of a head is that of the tokens
    that see by it.
    """
    taken = seen
    if top_heads is not None:
        order = head_contrast(scores, response_mask, seen).argsort(dim=1, descending=True, stable=True)
        order = order[:, :, None].expand_as(scores)
        scores, seen = scores.gather(1, order), seen.gather(1, order)
        taken = seen & (seen.cumsum(dim=1) <= top_heads)
    count = taken.sum(dim=1)
    mean = torch.where(taken, scores, 0.0).sum(dim=1) / count.clamp_min(1)
    sees = response_mask & (count > 0)
    least = mean.masked_fill(~sees, torch.inf).amin(dim=1, keepdim=True)
    return torch.where(sees, mean, least.masked_fill(least == torch.inf, 0.0))


def _tokens(
    capture: QueryKeyCapture,
    score: Float[Tensor, "rollout response"],
    mask: Bool[Tensor, "rollout response"],
    paragraphs: Int[Tensor, "rollout response"] | None,
    rows: Sequence[int],
) -> list[ScoredTokens]:
    """The responses `rows` as arrays; padding is cut off, so that nothing depends on the rest of the batch."""
    lengths, scores = mask.sum(dim=1).tolist(), score.cpu().numpy()
    widths = capture.image_mask.sum(dim=1).tolist()
    images = None if capture.image is None else capture.image.cpu().numpy()
    numbers = None if paragraphs is None else paragraphs.cpu().numpy()
    return [
        ScoredTokens(
            score=scores[row, : lengths[row]],
            image=None if images is None else images[row, : lengths[row], : widths[row]],
            paragraphs=None if numbers is None else numbers[row, : lengths[row]],
        )
        for row in rows
    ]
