"""AT-RL: credit by how much a token's cluster reads the picture (Jiao et al., arXiv 2602.11455)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from atrl.credit import metis
from atrl.credit.base import normalise
from atrl.credit.connectivity import Reduction, connectivity_density, remove_sinks
from atrl.credit.graph import Edges, edge_strengths, nearest_neighbours
from atrl.credit.weights import choose_anchors, load_map, perceptual_load
from atrl.types import AttentionCapture, CreditOutput, Experience


@dataclass(frozen=True, kw_only=True)
class AtrlCredit:
    """Perceptual anchors get more of the credit.

    The steps are the paper's: attention on the picture without its sinks → density → token graph → METIS → load →
    weights. What each is exactly is not published; `docs/method.md` says which choices are ours.

    Args:
        reduction: of attention to a density per token: "peak" or "mean" (see `connectivity_density`).
        sink_factor: an image column is a sink beyond so many times its even share; 0 keeps all columns.
        edges: of the token graph: "attention", "similarity" or "both".
        neighbours: edges kept per token, strongest first.
        num_clusters: METIS parts; a response of T tokens gets at most T/2.
        weights: "anchors" gives anchors `anchor_weight` and the rest `rest_weight`; "load_map" maps a cluster's load
            linearly into `rest_weight` … `anchor_weight`.
        anchor_ratio: share of a response's tokens that are anchors.
        anchor_weight, rest_weight: before the weights are scaled to mean 1; a `rest_weight` of 0 is the hard form.
        seed: of METIS.
    """

    reduction: Reduction = "peak"
    sink_factor: float = 4.0
    edges: Edges = "both"
    neighbours: int = 8
    num_clusters: int = 8
    weights: Literal["anchors", "load_map"] = "anchors"
    anchor_ratio: float = 0.15
    anchor_weight: float = 3.0
    rest_weight: float = 1.0
    seed: int = 0

    name = "atrl"
    needs_attention = True

    def __post_init__(self) -> None:
        if not 0 < self.anchor_ratio <= 1:
            raise ValueError(f"credit.anchor_ratio must be in (0, 1], got {self.anchor_ratio}: the paper finds 0.15")
        if self.num_clusters < 1:
            raise ValueError(f"credit.num_clusters must be at least 1, got {self.num_clusters}: try 8")
        if self.neighbours < 1:
            raise ValueError(f"credit.neighbours must be at least 1, got {self.neighbours}: try 8")
        if not 0 <= self.rest_weight <= self.anchor_weight or self.anchor_weight == 0:
            raise ValueError(
                f"credit.rest_weight must be between 0 and credit.anchor_weight > 0, got {self.rest_weight} and "
                f"{self.anchor_weight}"
            )
        if self.sink_factor < 0:
            raise ValueError(f"credit.sink_factor must be 0 (off) or more, got {self.sink_factor}: try 4")

    @torch.no_grad()
    def __call__(self, batch: Experience, capture: AttentionCapture | None) -> CreditOutput:
        """Weights, anchors and densities of every response; each depends on that response alone."""
        assert capture is not None, "atrl credit needs attention: the scoring forward must run with the probe on"
        image = capture.image
        if self.sink_factor > 0:
            image = remove_sinks(image, capture.image_mask, batch.response_mask, factor=self.sink_factor)
        density = connectivity_density(image, reduction=self.reduction)
        weights, anchors = torch.zeros_like(density), torch.zeros_like(batch.response_mask)
        lengths, columns = batch.response_mask.sum(dim=1).tolist(), capture.image_mask.sum(dim=1).tolist()
        for row, (length, width) in enumerate(zip(lengths, columns, strict=True)):
            if length:  # padding is cut off, so that no sum depends on the rest of the batch
                weights[row, :length], anchors[row, :length] = self._weigh_response(
                    density[row, :length], capture.response[row, :length, :length], image[row, :, :, :length, :width]
                )
        return CreditOutput(normalise(weights, batch.response_mask), anchors=anchors, density=density)

    def _weigh_response(
        self,
        density: Float[Tensor, "token"],
        response: Float[Tensor, "token token"],
        image: Float[Tensor, "layer head token image"],
    ) -> tuple[Float[Tensor, "token"], Bool[Tensor, "token"]]:
        if not density.any():  # no picture, or nothing but sinks: no token reads more than another
            return torch.ones_like(density), torch.zeros_like(density, dtype=torch.bool)
        num_clusters = min(self.num_clusters, len(density) // 2)
        membership = [0] * len(density)
        if num_clusters > 1:
            graph = nearest_neighbours(edge_strengths(response, image, edges=self.edges), neighbours=self.neighbours)
            membership = metis.partition(*graph, num_clusters=num_clusters, seed=self.seed)
        clusters = torch.tensor(membership, device=density.device)
        load = perceptual_load(density, clusters)
        anchors = choose_anchors(density, clusters, load, ratio=self.anchor_ratio)
        if self.weights == "load_map":
            return load_map(load, clusters, low=self.rest_weight, high=self.anchor_weight), anchors
        return torch.where(anchors, self.anchor_weight, self.rest_weight), anchors
