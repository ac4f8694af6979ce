"""Softmax attention of response tokens, read from queries and keys in chunks and reduced at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.credit.blocks import Block, blocks, check_logsumexp, exceed_a_chunk, image_parts
from atrl.credit.connectivity import reduce_without_sinks
from atrl.credit.edges import Edges, strongest_edges
from atrl.credit.long_rows import reduce_by_rows
from atrl.credit.regions import Regions
from atrl.credit.window import seen_through

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class AttentionRequest:
    """Which attention is read, and in how much detail.

    Args:
        layers: numbers of the layers; None is all.
        heads: (layer, head) pairs; None is all heads of `layers`.
        row: "predicting" reads the row that produced a token (position t-1), "own" the row of the token itself.
        sink_factor: image columns that are sinks are left out (see `connectivity.remove_sinks`); 0 keeps all.
        neighbours: strongest response→response edges kept per token and layer; 0 reads none.
        by_picture: also keep every head's mass on each of the prompt's pictures and videos by itself.
        detail: also keep every head's mass on every image token: for analysis, since it is large.
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[tuple[int, int], ...] | None = None
    row: str = "predicting"
    sink_factor: float = 4.0
    neighbours: int = 8
    by_picture: bool = False
    detail: bool = False

    def reader(self, model: PreTrainedModel, regions: Regions) -> AttentionReader:
        """A fresh reader for one forward pass over the batch that `regions` describes."""
        return AttentionReader(self, regions)


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCapture:
    """What was read of one batch, image sinks left out; 0 on padding. Layers and heads as requested, in order."""

    total: Float[Tensor, "rollout layer head response"]
    """Mass of a token's row on the whole picture."""
    peak: Float[Tensor, "rollout layer head response"]
    """Its largest mass on one image token."""
    image: Float[Tensor, "rollout response image"]
    """On each image token the largest mass in any head of any layer."""
    image_mask: Bool[Tensor, "rollout image"]
    """Which of the (padded) image columns are real."""
    edges: Edges | None
    """Response→response attention; None if not requested."""
    pictures: Float[Tensor, "rollout layer head response picture"] | None = None
    """`total` by picture, in the prompt's order; only with `by_picture`."""
    mass: Float[Tensor, "rollout layer head response image"] | None = None
    """Every head's mass on every image token; only with `detail`."""


class AttentionReader:
    """Adds up one forward pass, layer by layer. Reading a layer twice leaves the same result. `fused` takes masses from
    Triton kernels instead of `Block`'s own; None does so wherever these run. `check` compares the first log-sum-exp
    that a kernel kept with the scores; None does so on anything but a CPU, where tests have done it.

    Beyond what it returns it holds a few blocks of `CHUNK_ELEMENTS` at a time, one of which are queries and keys that
    wait."""

    def __init__(
        self, request: AttentionRequest, regions: Regions, *, fused: bool | None = None, check: bool | None = None
    ) -> None:
        self._request, self._regions = request, regions
        self._fused = fused_available(regions.rows.device) if fused is None else fused
        self._unchecked = regions.rows.device.type != "cpu" if check is None else check
        self._image_mass: Callable[[Block], Tensor] = Block.image_mass
        self._response_mass: Callable[[Block], Tensor] = Block.response_mass
        self._reduce_image: Callable[..., tuple[Tensor, Tensor]] | None = None
        if self._fused:
            from atrl.credit.fused import image_mass, response_mass
            from atrl.credit.fused_reduce import reduce_image_mass

            self._image_mass, self._response_mass = image_mass, response_mass
            if not (request.detail or request.by_picture):  # of which the masses themselves are needed
                self._reduce_image = reduce_image_mass
        self._waiting: dict[int, Block] = {}
        self._total: dict[int, Tensor] = {}
        self._peak: dict[int, Tensor] = {}
        self._pictures: dict[int, Tensor] = {}
        self._mass: dict[int, Tensor] = {}
        self._edges: dict[int, tuple[Tensor, Tensor]] = {}
        self._image: Tensor | None = None
        self._heads_read = 0

    def read_attention(
        self,
        layer: int,
        query: Float[Tensor, "row heads query width"],
        key: Float[Tensor, "row kv_heads column width"],
        *,
        scaling: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        logsumexp: Float[Tensor, "row heads query"] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Add layer `layer`: queries and keys after rotary embedding, which the kernel sees in `dtype`, or as they are.

        The queries are those of the last columns: where prompts were run before, only their keys are there. `logsumexp`
        is each query's over all columns before it, if the kernel kept it; not of a window, nor of a softcap.
        """
        heads = self._wanted_heads(layer, query.shape[1])
        if not heads or layer in self._total or layer in self._waiting:
            return
        regions, states = self._regions, (query.detach(), key.detach())
        self._waiting[layer] = Block(*states, heads, regions, scaling, sliding_window, softcap, logsumexp, dtype)
        if exceed_a_chunk(self._waiting.values()):
            self._read_waiting()

    def _read_waiting(self) -> None:
        """Layers that fit into a chunk together are read in one go, not each where it ends and finds cold caches."""
        waiting, self._waiting = self._waiting, {}
        for layer, block in waiting.items():
            self._read_layer(layer, block)

    def _read_layer(self, layer: int, whole: Block) -> None:
        regions, key = self._regions, whole.key
        if self._image is None:
            shape = (regions.size, regions.rows.shape[1], regions.columns.shape[1])
            self._image = key.new_zeros(shape, dtype=torch.float32)
        if whole.lse is not None and self._unchecked:  # of the first layer that has one: a window's kernel keeps none
            check_logsumexp(whole)  # torch doesn't promise what a kernel keeps
            self._unchecked = False
        if self._reduce_image is None:
            total, peak = self._reduce_in_blocks(layer, whole, self._image)
        else:
            total, peak = self._reduce_image(whole, self._image, factor=self._request.sink_factor)
        if self._request.neighbours:
            keys = None if self._fused else (key.shape[2], key.shape[3])
            self._edges[layer] = strongest_edges(whole, self._request.neighbours, self._response_mass, held=keys)
        self._total[layer], self._peak[layer] = total, peak
        self._heads_read += len(whole.heads)

    def result(self) -> AttentionCapture:
        """What was read, layers in order.

        Raises:
            AssertionError: if no layer was read: the model's attention does not go through the interface.
            ValueError: if only some of the layers that are asked for were.
        """
        self._read_waiting()
        assert self._total, (
            "the attention probe saw no layer; does this model use transformers' attention interface, and does it have "
            "the layers and heads that are asked for?"
        )
        asked = self._request.layers if self._request.heads is None else [layer for layer, _ in self._request.heads]
        require_layers(asked, self._total)
        mask = self._regions.row_mask
        return AttentionCapture(
            total=self._by_layer(self._total),
            peak=self._by_layer(self._peak),
            image=self._image * mask[:, :, None],
            image_mask=self._regions.column_mask,
            edges=self._joined_edges(),
            pictures=self._by_layer(self._pictures) if self._request.by_picture else None,
            mass=self._by_layer(self._mass) if self._request.detail else None,
        )

    def _reduce_in_blocks(
        self, layer: int, whole: Block, highest: Float[Tensor, "rollout response image"]
    ) -> tuple[Float[Tensor, "rollout head response"], Float[Tensor, "rollout head response"]]:
        """(total, peak) of a layer; `highest` is raised to its largest masses, and what else is asked for is kept."""
        regions, heads, key = self._regions, whole.heads, whole.key
        shape = (regions.size, len(heads), regions.rows.shape[1])
        total, peak = highest.new_empty(2, *shape)
        if self._request.detail:
            self._mass[layer] = total.new_empty(*shape, regions.columns.shape[1])
        if self._request.by_picture:
            assert regions.pictures is not None, "mass by picture needs regions that say which columns are of which"
            self._pictures[layer] = total.new_zeros(*shape, regions.pictures.shape[2])
        # Fused, nothing is as wide as a row of scores, and no key is copied.
        held = (shape[2], 1) if self._fused else (key.shape[2], key.shape[3])
        for part, first, last in blocks(regions, len(heads), *held):
            here = regions.part(part)
            block = replace(whole, heads=heads[first:last], regions=here)
            for rows, image, of_rows, largest in self._without_sinks(block):
                total[part, first:last, rows], peak[part, first:last, rows] = of_rows, largest
                if image.shape[-1]:
                    torch.maximum(highest[part, rows], image.amax(dim=1), out=highest[part, rows])
                if here.pictures is not None and self._request.by_picture:
                    self._pictures[layer][part, first:last, rows] = image @ here.pictures[:, None]
                if self._request.detail:
                    self._mass[layer][part, first:last, rows] = image
        return total, peak

    def _without_sinks(self, block: Block) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Rows of the block, their masses without sinks, and of these the sum and the largest of each row."""
        regions, factor = block.regions, self._request.sink_factor
        masks, seen = (regions.column_mask, regions.row_mask), seen_through(regions, block.sliding_window)
        parts = image_parts(regions, len(block.heads))
        if len(parts) <= 1:
            rows = slice(0, regions.rows.shape[1])
            yield rows, *reduce_without_sinks(self._image_mass(block), *masks, factor=factor, seen=seen)
            return

        def masses(rows: slice) -> Tensor:
            return self._image_mass(replace(block, regions=regions.of_tokens(rows)))

        for rows, image in reduce_by_rows(masses, parts, *masks, factor=factor, seen=seen):
            yield rows, image, image.sum(dim=-1), image.amax(dim=-1)

    def _wanted_heads(self, layer: int, count: int) -> list[int]:
        if self._request.heads is not None:
            heads = sorted({head for number, head in self._request.heads if number == layer})
            for head in heads:  # the kernels would read beyond the queries
                if not 0 <= head < count:
                    raise ValueError(f"credit.heads: layer {layer} has heads 0 to {count - 1}, got {head}")
            return heads
        if self._request.layers is not None and layer not in self._request.layers:
            return []
        return list(range(count))

    def _by_layer(self, read: dict[int, Tensor]) -> Float[Tensor, "rollout layer head response *rest"]:
        """What was read layer by layer, in their order, 0 on padding; heads of unequal number per layer are one flat
        list, as one layer."""
        layers = sorted(read)
        counts = {read[layer].shape[1] for layer in layers}
        layout = (len(layers), counts.pop()) if len(counts) == 1 else (1, self._heads_read)
        joined = torch.cat([read[layer] for layer in layers], dim=1).unflatten(1, layout)
        mask = self._regions.row_mask[:, None, None]
        return joined.mul_(mask.view(*mask.shape, *[1] * (joined.ndim - mask.ndim)))

    def _joined_edges(self) -> Edges | None:
        if not self._edges:
            return None
        targets, strengths = zip(*(self._edges[layer] for layer in sorted(self._edges)), strict=True)
        return Edges(torch.stack(targets, dim=1), torch.stack(strengths, dim=1) / self._heads_read)


def require_layers(asked: Sequence[int] | None, read: Collection[int]) -> None:
    """Raises ValueError where a layer that was asked for by number had no attention to read."""
    missing = sorted(set(asked or ()) - set(read))
    if missing:
        raise ValueError(
            f"credit.layers and credit.heads must name layers that have attention, got {missing[0]}: of those asked "
            f"for only {sorted(read)} were seen"
        )


def fused_available(device: torch.device) -> bool:
    """Whether the Triton kernels run on tensors of `device`."""
    return device.type == "cuda" and find_spec("triton") is not None
