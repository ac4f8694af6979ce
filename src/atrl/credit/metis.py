"""Cutting a token graph into clusters with METIS; the only file that imports it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    Integers = Sequence[int] | np.ndarray

REFINEMENTS = 1
"""Passes over the cut at each level, METIS's `niter`. Its default of 10 finds cuts half a percent smaller, in half as
much time again (`docs/benchmarks.md`)."""


def partition(
    starts: Integers, targets: Integers, weights: Integers, *, num_clusters: int, seed: int = 0
) -> Sequence[int]:
    """A cluster id for every node: about equal sizes, least weight of the edges cut.

    METIS: Karypis & Kumar, SIAM J. Sci. Comput. 20(1), 1998. Recursive bisection is asked for explicitly: pymetis
    would otherwise change to k-way above eight parts, in the middle of an ablation over their number.

    Args:
        starts, targets, weights: the graph in compressed rows; each edge stands in both of its rows.
        num_clusters: how many parts; one part or an edgeless graph needs no METIS, and the latter is cut into runs.
        seed: of METIS's own generator.
    """
    nodes = len(starts) - 1
    if num_clusters <= 1:
        return [0] * nodes
    if not len(targets):
        return [node * num_clusters // nodes for node in range(nodes)]
    import pymetis

    _, membership = pymetis.part_graph(
        num_clusters,
        adjacency=pymetis.CSRAdjacency(starts, targets),
        eweights=weights,
        recursive=True,
        options=pymetis.Options(seed=seed, niter=REFINEMENTS),
    )
    return membership


def prepare_worker() -> None:
    """Load what clustering needs in a process of its own, which takes one core and no more. That needs no torch."""
    os.environ["OMP_NUM_THREADS"] = "1"  # as numpy is imported it starts threads for its matrix products

    import pymetis  # noqa: F401

    import atrl.credit.clusters
    import atrl.credit.spans  # noqa: F401
