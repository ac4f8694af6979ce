"""What `evaluate.py` does: held-out problems, a benchmark, recorded answers, or the comparison of two results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def evaluate_command(config: DictConfig, folder: Path) -> dict[str, Any]:
    """The evaluation that `config` asks for; its files go to `folder`.

    Raises:
        ValueError: in lines that name what is wrong, if it can't be done.
    """
    if config.get("compare"):
        from atrl.evaluation.compare import compare

        return compare(config, folder)
    if config.get("predictions"):
        if not config.get("benchmark"):
            raise ValueError(
                "predictions are scored by a benchmark's rule: add benchmark=NAME (benchmark=jsonl for a file)"
            )
        from atrl.benchmarks.run import score_recorded

        return score_recorded(config, folder)
    if config.get("benchmark"):
        from atrl.benchmarks.run import score_checkpoint

        return score_checkpoint(config, folder)
    from atrl.evaluation.run import evaluate

    return evaluate(config, folder)
