"""The top level of ``conf/evaluate.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atrl.sections import at_least, check_seed


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What is scored, on how many problems, and by how many responses to each."""

    checkpoint: str
    samples: int = 8  # per problem, for avg@k; 0 scores greedily alone
    grounding: bool | None = None  # also without the right pictures; null for held-out problems and no benchmark
    grounding_problems: int | None = 128  # the first so many of the held-out problems for that; null for all
    limit: int | None = 512  # at most so many problems; null for all
    threads: int | None = None  # null for all cores
    seed: int = 0
    verbose: bool = False
    predictions: str | None = None  # a file of recorded answers, to be scored instead of a checkpoint's
    extract_again: bool = False  # True reads recorded responses even where an extraction is recorded too
    missing: Literal["refuse", "skip"] = "refuse"  # what to do about problems that the file has no answer to
    compare: list[str] | None = None  # two finished evaluations, to be compared

    def __post_init__(self) -> None:
        """Raises ValueError for a count that is too small, or a seed that the random generators refuse."""
        check_seed(self.seed)
        if self.compare is not None and len(self.compare) != 2:
            raise ValueError(f"compare must name two results, got {len(self.compare)}: write compare=[FOLDER,FOLDER]")
        if self.threads is not None:
            at_least("threads", self.threads, 1, "null takes all cores")
        at_least("samples", self.samples, 0, "0 scores greedily alone")
        if self.grounding_problems is not None:
            at_least("grounding_problems", self.grounding_problems, 1, "grounding=false leaves that out")
        if self.limit is not None:
            at_least("limit", self.limit, 1, "null scores all problems")
