"""Problems that are no published benchmark: any local file, and the test splits of this project's own sources."""

from __future__ import annotations

from dataclasses import dataclass

from atrl.benchmarks.rewarded import RewardedBenchmark


@dataclass(frozen=True, kw_only=True)
class LocalProblems(RewardedBenchmark):
    """Any file of problems: ``problem``, ``answer``, ``images``, and ``id`` and ``choices`` where it has them.

    A picture stands at its ``<image>`` mark in the text, as where the file is trained on.
    """

    name = "jsonl"
    own_marks = True
    hub: str = ""
    instruction: str | None = None


@dataclass(frozen=True, kw_only=True)
class GeometryTask(RewardedBenchmark):
    """The test split of the built-in task."""

    name = "geometry"
    hub: str = ""
    instruction: str | None = None


@dataclass(frozen=True, kw_only=True)
class EasyVqa(RewardedBenchmark):
    """The test split of easy-VQA's open questions."""

    name = "easy_vqa"
    hub: str = ""
    instruction: str | None = None
