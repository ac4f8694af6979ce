"""AT-RL: credit by how much a token's cluster reads the picture (Jiao et al., arXiv 2602.11455)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atrl.credit.attention import AttentionCapture, AttentionRequest
from atrl.credit.base import CreditScheme, normalise
from atrl.credit.connectivity import Reduction, connectivity_density
from atrl.credit.graph import EdgeKind, attention_strengths, combined, nearest_neighbours, similarity_strengths
from atrl.credit.metis import Graph, Partitioner
from atrl.credit.regions import Row
from atrl.credit.weights import Ranking, check_weights, choose_anchors, load_map, perceptual_load
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class AtrlCredit(CreditScheme):
    """Perceptual anchors get more of the credit.

    The steps are the paper's: attention on the picture without its sinks → density → token graph → METIS → load →
    weights. What each is exactly is not published; `docs/method.md` says which choices are ours.

    Args:
        layers: numbers of the layers that are read; None is all.
        heads: [layer, head] pairs that are read; None is all heads of `layers`.
        row: the query that speaks for a token: "predicting" it (position t-1) or its "own".
        reduction: of attention to a density per token: "peak", "mean" or "top_heads" (see `connectivity_density`).
        top_heads: how many heads `reduction="top_heads"` averages.
        sink_factor: an image column is a sink beyond so many times its even share; 0 keeps all columns.
        edges: of the token graph: "attention", "similarity" or "both".
        neighbours: edges kept per token, strongest first.
        num_clusters: METIS parts; a response of T tokens gets at most T/2. "auto" is √T.
        rank_clusters: clusters come in the order of their "mean" or of their "peak" density.
        weights: "anchors" gives anchors `anchor_weight` and the rest `rest_weight`; "load_map" maps a cluster's load
            linearly into `rest_weight` … `anchor_weight`.
        anchor_ratio: share of a response's tokens that are anchors.
        anchor_weight, rest_weight: before the weights are scaled to mean 1; a `rest_weight` of 0 is the hard form.
        seed: of METIS.
        workers: processes that cluster while the model does its next forward pass; 0 clusters in between.
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[tuple[int, int], ...] | None = None
    row: Row = "predicting"
    reduction: Reduction = "peak"
    top_heads: int = 4
    sink_factor: float = 4.0
    edges: EdgeKind = "both"
    neighbours: int = 8
    num_clusters: int | Literal["auto"] = 8
    rank_clusters: Ranking = "mean"
    weights: Literal["anchors", "load_map"] = "anchors"
    anchor_ratio: float = 0.15
    anchor_weight: float = 3.0
    rest_weight: float = 1.0
    seed: int = 0
    workers: int = 0
    _partitioner: Partitioner = field(init=False, repr=False, compare=False)

    name = "atrl"

    def __post_init__(self) -> None:
        check_weights(self.anchor_ratio, self.anchor_weight, self.rest_weight)
        for option, remedy in (("num_clusters", "try 8"), ("neighbours", "try 8"), ("top_heads", "try 4")):
            value = getattr(self, option)
            if value != "auto" and value < 1:
                raise ValueError(f"credit.{option} must be at least 1, got {value}: {remedy}")
        if self.sink_factor < 0:
            raise ValueError(f"credit.sink_factor must be 0 (off) or more, got {self.sink_factor}: try 4")
        if self.workers < 0:
            raise ValueError(f"credit.workers must be 0 (cluster in the training process) or more, got {self.workers}")
        object.__setattr__(self, "_partitioner", Partitioner(self.workers))

    @property
    def requests(self) -> tuple[AttentionRequest, ...]:
        """One reading of the attention, with response edges only if the graph uses them."""
        uses_edges = self.num_clusters != 1 and self.edges != "similarity"
        return (
            AttentionRequest(
                layers=None if self.layers is None else tuple(self.layers),
                heads=None if self.heads is None else tuple((layer, head) for layer, head in self.heads),
                row=self.row,
                sink_factor=self.sink_factor,
                neighbours=self.neighbours if uses_edges else 0,
            ),
        )

    def open(self) -> None:
        """Start the clustering processes."""
        self._partitioner.open()

    def close(self) -> None:
        """Stop them."""
        self._partitioner.close()

    def assign(self, batch: Experience, evidence: Evidence) -> CreditOutput:
        """Weights, anchors and densities of every response; each depends on that response alone."""
        return self.begin(batch, evidence)()

    @torch.no_grad()
    def begin(self, batch: Experience, evidence: Evidence) -> Callable[[], CreditOutput]:
        """Build the graphs and hand them to METIS; the returned call makes weights of the clusters."""
        capture: AttentionCapture = evidence.read[self.requests[0]]
        density = connectivity_density(
            capture, batch.response_mask, reduction=self.reduction, top_heads=self.top_heads
        )
        lengths = batch.response_mask.sum(dim=1).tolist()
        # No picture, or nothing but sinks: no token reads more than another, and there is nothing to cluster.
        reading = [row for row, seen in enumerate(density.any(dim=1).tolist()) if seen]
        graphs = [self._graph(capture, row, lengths[row]) for row in reading]
        clusters = self._partitioner.submit(graphs, seed=self.seed)

        def finish() -> CreditOutput:
            weights, anchors = batch.response_mask.float(), torch.zeros_like(batch.response_mask)
            for row, membership in zip(reading, clusters(), strict=True):
                length = lengths[row]
                ids = torch.tensor(membership, device=density.device)
                weights[row, :length], anchors[row, :length] = self._weigh(density[row, :length], ids)
            return CreditOutput(normalise(weights, batch.response_mask), anchors=anchors, density=density)

        return finish

    def _graph(self, capture: AttentionCapture, row: int, length: int) -> Graph:
        """Padding is cut off, so that no sum depends on the rest of the batch."""
        wanted = round(length**0.5) if self.num_clusters == "auto" else self.num_clusters
        num_clusters = min(wanted, length // 2)
        if num_clusters <= 1:
            return Graph([0] * (length + 1), [], [], 1)
        width = int(capture.image_mask[row].sum())
        parts = []
        if self.edges in ("attention", "both"):
            edges = capture.edges
            parts.append(attention_strengths(edges.targets[row, :length], edges.strengths[row, :length]))
        if self.edges in ("similarity", "both"):
            parts.append(similarity_strengths(capture.image[row, :length, :width]))
        return Graph(*nearest_neighbours(combined(parts), neighbours=self.neighbours), num_clusters)

    def _weigh(
        self, density: Float[Tensor, "token"], clusters: Int[Tensor, "token"]
    ) -> tuple[Float[Tensor, "token"], Bool[Tensor, "token"]]:
        load = perceptual_load(density, clusters, ranking=self.rank_clusters)
        anchors = choose_anchors(density, clusters, load, ratio=self.anchor_ratio)
        if self.weights == "load_map":
            return load_map(load, clusters, low=self.rest_weight, high=self.anchor_weight), anchors
        return torch.where(anchors, self.anchor_weight, self.rest_weight), anchors
