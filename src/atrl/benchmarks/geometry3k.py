"""Geometry3K (Lu et al., ACL 2021, arXiv 2105.04165) as `hiyouga/geometry3k` holds it: free answers in LaTeX."""

from __future__ import annotations

from dataclasses import dataclass, field

from atrl.benchmarks.base import Columns
from atrl.benchmarks.rewarded import RewardedBenchmark


@dataclass(frozen=True, kw_only=True)
class Geometry3K(RewardedBenchmark):
    """The test split has 601 problems; they have no ids and are named by their row."""

    name = "geometry3k"
    hub: str = "hiyouga/geometry3k"
    columns: Columns = field(
        default_factory=lambda: {"id": "id", "answer": "answer", "question": "problem", "image": "images"}
    )
