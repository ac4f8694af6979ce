"""Which attention heads read the picture, found without labels: a score for every head, and the best of them.

A head that looks at the picture much, or that changes with it, is not one that reads it. What tells readers is whether
a head looks where the picture matters, and where it does a masked picture shows: on three small models of 12 heads the
rank correlation of a head's score with the area under the curve of its peaks, against the tokens that truly read, is
0.92, 0.71 and 0.93 by dependency, 0.66, 0.43 and 0.33 by relative contrast and no more than 0.40 by the others
(`python benchmarks/heads.py`, docs/benchmarks.md). Larger models were not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atrl.credit.attention import AttentionCapture, AttentionRequest
from atrl.credit.base import Criterion, Heads, HeadSearch
from atrl.credit.connectivity import head_contrast, relative_peaks
from atrl.credit.dependency import ROUNDING, above_rounding
from atrl.credit.probe import AttentionProbe
from atrl.models.head import run_layers
from atrl.models.policy import evaluating
from atrl.splitting import EvenSplit, Split
from atrl.types import Experience

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from atrl.forward import ForwardPass

Result = TypeVar("Result")

WHOLE = EvenSplit(size=64)
"""As many as are calibrated on, and more, in one pass."""


def head_scores(
    capture: AttentionCapture,
    response_mask: Bool[Tensor, "rollout response"],
    criterion: Criterion,
    *,
    dependency: Float[Tensor, "rollout response"] | None = None,
    blank: AttentionCapture | None = None,
) -> Float[Tensor, "layer head"]:
    """How much each head reads the picture, in float64: the mean over rollouts, each weighted by its tokens T.

    With p[t] the head's largest mass on one image token in the row of token t (`AttentionCapture.peak`), std and mean
    over the T trained tokens of a response:

    - ``dependency``: ``Σ s p / (mean p · Σ s)``, s[t] the KL by which a masked picture changes token t: how much more
      than on average the head looks where the picture matters. 1 is indifference, 0 a head that is blind there.
      Responses that the masked picture doesn't change have no say.
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
        criterion: one of the four.
        dependency: in nats; only the criterion of that name looks at it.
        blank: the same responses with blanked pictures; only `sensitivity` looks at it.

    Raises:
        ValueError: if what the criterion compares with isn't given, or no response depends on its picture.
    """
    found = _mean(*_per_rollout(capture, response_mask, criterion, dependency, blank))
    return found.unflatten(0, capture.peak.shape[1:3])


def _mean(scores: Float[Tensor, "rollout head"], tokens: Int[Tensor, "rollout"]) -> Float[Tensor, "head"]:
    """Over rollouts, each weighted by the tokens that its scores stand for.

    Raises:
        ValueError: if they stand for none, which only those by dependency may.
    """
    if not tokens.any():
        raise ValueError(
            "credit.head_criterion=dependency goes by what masked pictures change, and they change no response: does "
            "the model read pictures yet? credit.head_criterion=relative_contrast goes by attention alone"
        )
    return (scores.double() * tokens.double()[:, None]).sum(dim=0) / tokens.sum()


_Scores = tuple[Float[Tensor, "rollout head"], Int[Tensor, "rollout"]]
"""Of the heads in each rollout, and the tokens that these stand for."""


def _per_rollout(
    capture: AttentionCapture,
    response_mask: Bool[Tensor, "rollout response"],
    criterion: Criterion,
    dependency: Float[Tensor, "rollout response"] | None,
    blank: AttentionCapture | None,
) -> _Scores:
    if criterion == "dependency":
        return _dependency(capture, response_mask, dependency)
    tokens = response_mask.sum(dim=1)
    if criterion == "sensitivity":
        return _sensitivity(capture, response_mask, blank), tokens
    peaks = capture.peak.flatten(1, 2) if criterion == "contrast" else relative_peaks(capture, response_mask)
    return head_contrast(peaks, response_mask), tokens


def _dependency(
    capture: AttentionCapture,
    response_mask: Bool[Tensor, "rollout response"],
    dependency: Float[Tensor, "rollout response"] | None,
) -> _Scores:
    if dependency is None:
        raise ValueError("head_criterion=dependency compares with masked pictures, got none: pass `dependency`")
    changed = above_rounding(dependency, response_mask).double()
    whole = changed.sum(dim=1, keepdim=True)
    share = changed / whole.clamp_min(ROUNDING)  # what is changed at all is changed by more
    scores = torch.einsum("bht,bt->bh", relative_peaks(capture, response_mask).double(), share)
    return scores, response_mask.sum(dim=1) * (whole[:, 0] > 0)


def _sensitivity(
    capture: AttentionCapture, response_mask: Bool[Tensor, "rollout response"], blank: AttentionCapture | None
) -> Float[Tensor, "rollout head"]:
    if blank is None:
        raise ValueError("head_criterion=sensitivity compares with blanked pictures, got none: pass `blank`")
    change = (capture.peak.flatten(1, 2) - blank.peak.flatten(1, 2)).abs()
    return torch.where(response_mask[:, None], change, 0.0).sum(dim=2) / response_mask.sum(dim=1).clamp_min(1)[:, None]


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
    other: Sequence[dict[str, Tensor]] | None = None,
    run: ForwardPass | None = None,
    split: Split = WHOLE,
) -> Float[Tensor, "layer head"]:
    """Scores of all heads of `model` on the responses of `batch`, on the CPU; the model is left as it was.

    A scheme of `heads="auto"` is made ready by::

        scores = calibrate(model, batch, scheme.head_search, other=masked, run=ForwardPass(temperature=1.0, …))
        scheme = scheme.with_heads(choose_heads(scores, scheme.auto_heads, layers=scheme.layers))

    Args:
        model: the policy.
        batch: its own responses, on its device: what is read depends on what is written.
        search: by which criterion, and how attention is read.
        other: for `dependency` the processor's tensors of each rollout's masked pictures, for `sensitivity` of its
            blanked ones, of the same sizes.
        run: for `dependency`, how the policy is run.
        split: which rollouts share a forward pass.

    Raises:
        ValueError: as `head_scores`; if the layers of the model don't all have attention with the same number of heads.
    """
    text = model.config.get_text_config()
    shape = (text.num_hidden_layers, text.num_attention_heads)
    order = split.order(batch)
    without = None if other is None else replace(batch, pixels=list(other)).rows(order)
    batch = batch.rows(order)
    scores: list[Tensor] = []
    counted: list[Tensor] = []
    for rows in split.slices(batch):
        piece, dependency, blank = split.piece(batch, rows), None, None
        if search.criterion == "dependency" and without is not None and run is not None:
            capture, dependency = _read_dependency(model, piece, split.piece(without, rows), search, run)
        else:
            capture = read_heads(model, piece, search)
        if tuple(capture.peak.shape[1:3]) != shape:
            raise ValueError(
                f"credit.heads=auto needs {shape[1]} attention heads in each of the model's {shape[0]} layers, got "
                f"{capture.peak.shape[1:3].numel()} heads in all: name the heads, as credit.heads=[[layer, head], …]"
            )
        if search.criterion == "sensitivity" and without is not None:
            blank = read_heads(model, split.piece(without, rows), search)
        found, tokens = _per_rollout(capture, piece.response_mask, search.criterion, dependency, blank)
        scores.append(found)
        counted.append(tokens)
    return _mean(torch.cat(scores), torch.cat(counted)).unflatten(0, shape).cpu()


def read_heads(model: PreTrainedModel, batch: Experience, search: HeadSearch) -> AttentionCapture:
    """The attention of all heads in one pass, as `search` has it, without logits."""
    return _read_while(run_layers, model, batch, search)[0]


def _read_dependency(
    model: PreTrainedModel, batch: Experience, masked: Experience, search: HeadSearch, run: ForwardPass
) -> tuple[AttentionCapture, Float[Tensor, "rollout response"]]:
    """Attention, read on the way through the pass whose distributions the masked pictures' are compared with, and the
    KL between the two in nats."""
    capture, own = _read_while(run.scores, model, batch, search)
    with torch.no_grad(), evaluating(model):
        divergence = run.scores(model, masked, against=own.rows).divergence
    assert divergence is not None, "rows were given to compare with"
    return capture, divergence


def _read_while(
    run: Callable[[PreTrainedModel, Experience], Result], model: PreTrainedModel, batch: Experience, search: HeadSearch
) -> tuple[AttentionCapture, Result]:
    """The attention of all heads while `run` takes the model over `batch`, and what that returns; without dropout,
    which would draw from the global state."""
    request = AttentionRequest(row=search.row, sink_factor=search.sink_factor, neighbours=0)
    probe = AttentionProbe(model, [request])
    try:
        with torch.no_grad(), evaluating(model), probe.capture(batch) as recorder:
            result = run(model, batch)
    finally:
        probe.detach()
    return recorder.results()[request], result
