"""Which attention heads read the picture, found without labels: a score for every head, and the best of them.

On the tiny model the peaks of its 12 heads tell the tokens that read the picture from the others with areas under the
curve between 0.48 and 0.95. The rank correlation of a head's score with its area is 0.66 by relative contrast and 0.07
by contrast and sensitivity: heads that look at the picture much are not those that read it. The density of the best
six heads by relative contrast has an area of 0.986 where that of all has 0.981; of the best two or four it has 0.92 and
0.95, since single heads read single things. `python benchmarks/heads.py tiny`; larger models were not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atrl.credit.attention import AttentionCapture, AttentionRequest
from atrl.credit.base import Criterion, Heads, HeadSearch
from atrl.credit.connectivity import head_contrast, relative_peaks
from atrl.credit.probe import AttentionProbe
from atrl.models.head import run_layers
from atrl.models.policy import evaluating
from atrl.splitting import EvenSplit, Split
from atrl.types import Experience

if TYPE_CHECKING:
    from transformers import PreTrainedModel


WHOLE = EvenSplit(size=64)
"""As many as are calibrated on, and more, in one pass."""


def head_scores(
    capture: AttentionCapture,
    response_mask: Bool[Tensor, "rollout response"],
    criterion: Criterion,
    blank: AttentionCapture | None = None,
) -> Float[Tensor, "layer head"]:
    """How much each head reads the picture, in float64: the mean over rollouts, each weighted by its tokens T.

    With p[t] the head's largest mass on one image token in the row of token t (`AttentionCapture.peak`), std and mean
    over the T trained tokens of a response:

    - ``relative_contrast``: ``std p / mean p``; 0 for a head that is blind in the response. A head that looks only
      where the text calls for it scores high, however little it looks.
    - ``contrast``: ``std p``. Heads that look much score high.
    - ``sensitivity``: ``mean |p - q|``, q the peaks of the same tokens with the pictures blanked. Heads that react to
      any picture score high, whatever they are after.

    A response's statistics are the better known the longer it is, hence the weights; one of a single token has no
    contrast and so no say in the order of the heads. Ours.

    Args:
        capture: all heads of all layers.
        response_mask: the tokens that count.
        criterion: one of the three.
        blank: the same responses with blanked pictures; only `sensitivity` looks at it.

    Raises:
        ValueError: if `sensitivity` is asked for without `blank`.
    """
    scores = _per_rollout(capture, response_mask, criterion, blank)
    return _weighted_mean(scores, response_mask.sum(dim=1)).unflatten(0, capture.peak.shape[1:3])


def _weighted_mean(scores: Float[Tensor, "rollout head"], tokens: Int[Tensor, "rollout"]) -> Float[Tensor, "head"]:
    return (scores.double() * tokens.double()[:, None]).sum(dim=0) / tokens.sum().clamp_min(1)


def _per_rollout(
    capture: AttentionCapture,
    response_mask: Bool[Tensor, "rollout response"],
    criterion: Criterion,
    blank: AttentionCapture | None,
) -> Float[Tensor, "rollout head"]:
    peak = capture.peak.flatten(1, 2)
    if criterion == "relative_contrast":
        return head_contrast(relative_peaks(capture, response_mask), response_mask)
    if criterion == "contrast":
        return head_contrast(peak, response_mask)
    if blank is None:
        raise ValueError("head_criterion=sensitivity compares with blanked pictures, got none: pass `blank`")
    change = torch.where(response_mask[:, None], (peak - blank.peak.flatten(1, 2)).abs(), 0.0)
    return change.sum(dim=2) / response_mask.sum(dim=1).clamp_min(1)[:, None]


def choose_heads(scores: Float[Tensor, "layer head"], count: int, *, layers: Sequence[int] | None = None) -> Heads:
    """The `count` best heads of `layers` (None is all), best first; ties go to the lower layer, then the lower head.

    Raises:
        ValueError: if there is no such layer, or no head scores more than 0: none looks at a picture.
    """
    assert scores.isfinite().all(), f"scores of heads must be finite, got {scores.tolist()}"
    layers = range(scores.shape[0]) if layers is None else layers
    unknown = [layer for layer in layers if not 0 <= layer < scores.shape[0]]
    if unknown:
        raise ValueError(f"credit.layers names layer {unknown[0]}, but the model has layers 0 to {scores.shape[0] - 1}")
    if not (scores[list(layers)] > 0).any():
        raise ValueError(
            "credit.heads=auto found no head that looks at a picture: do the problems have pictures? If so set "
            "credit.heads=null or name the heads"
        )
    pairs = [(layer, head) for layer in layers for head in range(scores.shape[1])]
    return tuple(sorted(pairs, key=lambda pair: (-scores[pair].item(), pair))[:count])


def calibrate(
    model: PreTrainedModel,
    batch: Experience,
    search: HeadSearch,
    *,
    blank: Sequence[dict[str, Tensor]] | None = None,
    split: Split = WHOLE,
) -> Float[Tensor, "layer head"]:
    """Scores of all heads of `model` on the responses of `batch`, on the CPU; the model is left as it was.

    A scheme of `heads="auto"` is made ready by::

        scores = calibrate(model, batch, scheme.head_search)
        scheme = scheme.with_heads(choose_heads(scores, scheme.auto_heads, layers=scheme.layers))

    Args:
        model: the policy.
        batch: its own responses, on its device: what is read depends on what is written.
        search: by which criterion, and how attention is read.
        blank: for `sensitivity`, the processor's tensors of each rollout's blanked pictures, of the same sizes.
        split: which rollouts share a forward pass.

    Raises:
        ValueError: if the layers of the model don't all have attention with the same number of heads.
    """
    text = model.config.get_text_config()
    shape = (text.num_hidden_layers, text.num_attention_heads)
    order = split.order(batch)
    batch, without = batch.rows(order), None
    if search.criterion == "sensitivity" and blank is not None:
        without = replace(batch, pixels=[blank[row] for row in order.tolist()])
    scores = []
    for rows in split.slices(batch):
        piece = split.piece(batch, rows)
        capture = read_heads(model, piece, search)
        if tuple(capture.peak.shape[1:3]) != shape:
            raise ValueError(
                f"credit.heads=auto needs {shape[1]} attention heads in each of the model's {shape[0]} layers, got "
                f"{capture.peak.shape[1:3].numel()} heads in all: name the heads, as credit.heads=[[layer, head], …]"
            )
        other = None if without is None else read_heads(model, split.piece(without, rows), search)
        scores.append(_per_rollout(capture, piece.response_mask, search.criterion, other))
    return _weighted_mean(torch.cat(scores), batch.response_mask.sum(dim=1)).unflatten(0, shape).cpu()


def read_heads(model: PreTrainedModel, batch: Experience, search: HeadSearch) -> AttentionCapture:
    """The attention of all heads in one pass, as `search` has it; without dropout, which would draw from the global
    state, and without logits."""
    request = AttentionRequest(row=search.row, sink_factor=search.sink_factor, neighbours=0)
    probe = AttentionProbe(model, [request])
    try:
        with torch.no_grad(), evaluating(model), probe.capture(batch) as recorder:
            run_layers(model, batch)
    finally:
        probe.detach()
    return recorder.results()[request]
