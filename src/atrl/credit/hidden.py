"""How near the hidden state of a response token is to those of the image tokens, read by forward hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.autocast import without_autocast
from atrl.credit.regions import Regions, Row
from atrl.timing import WorkClock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pooling = Literal["mean", "max"]
CHUNK_ELEMENTS = 1 << 22
"""Entries of the largest tensor made on the way, 16 MiB of float32, as long as the states of one response fit."""


@dataclass(frozen=True, kw_only=True)
class HiddenRequest:
    """Which hidden states are compared, and how.

    Args:
        layers: numbers of the decoder layers whose outputs are read, averaged over; None is all.
        row: "predicting" reads the position that produced a token (t-1), "own" the token's.
        pooling: over image tokens, the "mean" or the "max" of the cosine.
    """

    layers: tuple[int, ...] | None = None
    row: Row = "own"
    pooling: Pooling = "mean"

    kind = "hidden"

    def reader(self, model: PreTrainedModel, regions: Regions) -> HiddenReader:
        """A fresh reader for one forward pass over the batch that `regions` describes."""
        return HiddenReader(self, regions)


class HiddenReader:
    """Adds up one forward pass, layer by layer. Reading a layer twice leaves the same result."""

    def __init__(self, request: HiddenRequest, regions: Regions) -> None:
        self._request, self._regions = request, regions
        self._total = torch.zeros(regions.rows.shape, device=regions.rows.device)
        self._read: set[int] = set()
        self._clock = WorkClock()

    @property
    def seconds(self) -> float:
        """Spent on reading."""
        return self._clock.seconds

    @contextmanager
    def hooks(self, model: PreTrainedModel) -> Iterator[None]:
        """Listen to the outputs of the decoder layers that are wanted.

        Raises:
            ValueError: if `model` has no layer of a wanted number.
        """
        layers = decoder_layers(model)
        wanted = range(len(layers)) if self._request.layers is None else self._request.layers
        for number in wanted:
            if not 0 <= number < len(layers):
                raise ValueError(f"credit.layers must be between 0 and {len(layers) - 1} for this model, got {number}")
        with ExitStack() as handles:
            for number in wanted:
                handles.callback(layers[number].register_forward_hook(self._hook(number)).remove)
            yield

    def _hook(self, number: int):
        def hook(module: torch.nn.Module, arguments: tuple, output: Tensor | tuple) -> None:
            self.read_hidden(number, output if isinstance(output, Tensor) else output[0])

        return hook

    @torch.no_grad()
    def read_hidden(self, layer: int, hidden: Float[Tensor, "row column width"]) -> None:
        """Add layer `layer`: what it hands to the next one."""
        if layer in self._read:
            return
        self._read.add(layer)
        tokens, images = self._regions.rows.shape[1], self._regions.columns.shape[1]
        step = max(1, CHUNK_ELEMENTS // max(1, (tokens + images) * hidden.shape[2]))
        # Without autocast, or products would be taken in bfloat16.
        with self._clock.running(hidden.device), without_autocast():
            for start in range(0, self._regions.size, step):
                part = slice(start, start + step)
                self._total[part] += picture_cosine(hidden, self._regions.part(part), pooling=self._request.pooling)

    def result(self) -> Float[Tensor, "rollout response"]:
        """The mean over the layers that were read; 0 on padding and without a picture.

        Raises:
            AssertionError: if no layer was read.
        """
        assert self._read, "no decoder layer was heard: was the forward pass run inside the capture?"
        return torch.where(self._regions.row_mask, self._total / len(self._read), 0.0)


def picture_cosine(
    hidden: Float[Tensor, "row column width"], regions: Regions, *, pooling: Pooling
) -> Float[Tensor, "response token"]:
    """``pool_v cos(h[t], h[v])`` over the image tokens v of each response; 0 where there are none.

    The mean of cosines is one product with the mean of the unit vectors, so that no response × image block is made.
    """
    unit = torch.nn.functional.normalize
    source = regions.source[:, None]
    tokens = unit(hidden[source, regions.rows].float(), dim=-1)
    images = unit(hidden[source, regions.columns].float(), dim=-1) * regions.column_mask[..., None]
    if pooling == "mean":
        mean = images.sum(dim=1) / regions.column_mask.sum(dim=1).clamp_min(1)[:, None]
        return (tokens @ mean[:, :, None])[..., 0]
    pooled = tokens.new_zeros(tokens.shape[:2])
    if not images.shape[1]:
        return pooled
    step = max(1, CHUNK_ELEMENTS // max(1, images.shape[0] * images.shape[1]))
    for start in range(0, tokens.shape[1], step):
        part = slice(start, start + step)
        cosine = tokens[:, part] @ images.transpose(1, 2)
        pooled[:, part] = largest(cosine, regions.column_mask[:, None, :])
    return pooled


def largest(values: Float[Tensor, "*batch image"], allowed: Bool[Tensor, "*batch image"]) -> Float[Tensor, "*batch"]:
    """The maximum over what is allowed; 0 where nothing is."""
    return values.masked_fill(~allowed, -torch.inf).amax(dim=-1).masked_fill(~allowed.any(dim=-1), 0.0)


def decoder_layers(model: PreTrainedModel) -> Sequence[torch.nn.Module]:
    """The layers of the language half, first to last.

    Raises:
        AssertionError: if the model's decoder has none where transformers keeps them.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    count = model.config.get_text_config().num_hidden_layers
    found = layers is not None and len(layers) == count
    assert found, f"can't find the {count} decoder layers of {type(model).__name__}"
    return layers
