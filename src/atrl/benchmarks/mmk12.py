"""MMK12 (Meng et al., MM-Eureka, arXiv 2503.07365): 2,000 test questions of mathematics and three sciences."""

from __future__ import annotations

from dataclasses import dataclass, field

from atrl.benchmarks.base import Columns
from atrl.benchmarks.rewarded import RewardedBenchmark


@dataclass(frozen=True, kw_only=True)
class MMK12(RewardedBenchmark):
    """500 questions in each of mathematics, physics, chemistry and biology; the headline is the share that is right."""

    name = "mmk12"
    categories = ("subject",)
    hub: str = "FanqingM/MMK12"
    columns: Columns = field(
        default_factory=lambda: {
            **{"id": "id", "answer": "answer", "question": "question", "subject": "subject", "image": "image"}
        }
    )
