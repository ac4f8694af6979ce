"""AT-RL: credit by how much a token's cluster reads the picture (Jiao et al., arXiv 2602.11455)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atrl.credit.attention import AttentionCapture
from atrl.credit.base import normalise
from atrl.credit.clustering import ClusteringCredit, filled
from atrl.credit.clusters import ClusterSettings, TokenRows, cluster_links, partition_all, token_graph, weigh_all
from atrl.credit.density import DensityCredit
from atrl.credit.graph import EdgeKind
from atrl.credit.weights import Ranking, WeightMap, check_count, check_weights
from atrl.types import CreditOutput, Evidence, Experience


@dataclass(frozen=True, kw_only=True)
class AtrlCredit(ClusteringCredit, DensityCredit):
    """Perceptual anchors get more of the credit.

    The steps are the paper's: attention on the picture without its sinks → density → token graph → METIS → load →
    weights. What each is exactly is not published; `docs/method.md` says which choices are ours. The options of how
    attention is read are those of `DensityCredit`, and `workers` is that of `ClusteringCredit`.

    Args:
        edges: of the token graph: "attention", "similarity" or "both".
        neighbours: edges kept per token, strongest first.
        num_clusters: METIS parts; a response of T tokens gets at most T/2. "auto" is √T.
        rank_clusters: clusters come in the order of their "mean" or of their "peak" density.
        weights: "anchors" gives anchors `anchor_weight` and the rest `rest_weight`; "load_map" maps a cluster's load
            linearly into `rest_weight` … `anchor_weight`.
        anchor_ratio: share of a response's tokens that are anchors.
        anchor_weight: of anchors, before the weights are scaled to mean 1.
        rest_weight: of all other tokens, likewise; 0 is the hard form.
        seed: of METIS.
    """

    edges: EdgeKind = "similarity"
    neighbours: int = 8
    num_clusters: int | Literal["auto"] = 8
    rank_clusters: Ranking = "peak"
    weights: WeightMap = "anchors"
    anchor_ratio: float = 0.15
    anchor_weight: float = 3.0
    rest_weight: float = 1.0
    seed: int = 0

    name = "atrl"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.anchor_ratio, self.anchor_weight, self.rest_weight)
        check_count("neighbours", self.neighbours, usual=8)
        if self.num_clusters != "auto":
            check_count("num_clusters", self.num_clusters, usual=8)

    @property
    def cuts(self) -> bool:
        """A single cluster needs no METIS."""
        return self.num_clusters != 1

    @property
    def neighbours_read(self) -> int:
        """Response edges are read only if the graph uses them."""
        return self.neighbours if self.cuts and self.edges != "similarity" else 0

    @property
    def settings(self) -> ClusterSettings:
        """The options that matter once attention is read."""
        return ClusterSettings(**{option.name: getattr(self, option.name) for option in fields(ClusterSettings)})

    def regroup(
        self, density: Float[np.ndarray, "token"], image: Float[np.ndarray, "token image"]
    ) -> tuple[Int[np.ndarray, "token"], Int[np.ndarray, "cluster cluster"]] | None:
        """The clusters of one response again and the weight between them, to look at; None where they need more.

        With `edges="similarity"` they follow from density and image attention; other graphs need response edges, which
        a step doesn't keep.
        """
        if self.edges != "similarity" or len(density) < 4 or not density.any():
            return None
        rows = TokenRows(density=density, image=image, targets=None, strengths=None)
        [clusters] = partition_all([rows], self.settings)
        return clusters, cluster_links(*token_graph(rows, self.settings), clusters)

    @torch.no_grad()
    def begin(self, batch: Experience, evidence: Evidence) -> Callable[[], CreditOutput]:
        """Hand the rows of each response to METIS; the returned call collects the weights that come of it."""
        capture: AttentionCapture = evidence.read[self.requests[0]]
        density = self.density(batch, evidence)
        # No picture, or nothing but sinks: no token reads more than another, and there is nothing to cluster.
        reading = density.any(dim=1).nonzero()[:, 0].tolist()
        rows = token_rows(capture, density, batch.response_mask, reading)
        weighed = self._background.submit(weigh_all, rows, self.settings)

        def finish() -> CreditOutput:
            found, mask = weighed(), batch.response_mask
            weights = filled(mask.float(), reading, [own_weights for own_weights, _ in found])
            anchors = filled(torch.zeros_like(mask), reading, [own_anchors for _, own_anchors in found])
            return CreditOutput(normalise(weights, mask), anchors=anchors, density=density)

        return finish


def token_rows(
    capture: AttentionCapture,
    density: Float[Tensor, "rollout response"],
    mask: Bool[Tensor, "rollout response"],
    rows: Sequence[int],
) -> list[TokenRows]:
    """What is known of the responses `rows`, as arrays; padding is cut off, so that no sum depends on the batch."""
    lengths, widths = mask.sum(dim=1).tolist(), capture.image_mask.sum(dim=1).tolist()
    densities, images = density.float().cpu().numpy(), capture.image.cpu().numpy()
    edges = capture.edges
    targets = None if edges is None else edges.targets.cpu().numpy()
    strengths = None if edges is None else edges.strengths.cpu().numpy()
    return [
        TokenRows(
            density=densities[row, : lengths[row]],
            image=images[row, : lengths[row], : widths[row]],
            targets=None if targets is None else targets[row, :, : lengths[row]],
            strengths=None if strengths is None else strengths[row, :, : lengths[row]],
        )
        for row in rows
    ]
