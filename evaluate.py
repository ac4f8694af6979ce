"""Score a checkpoint: `python evaluate.py checkpoint=outputs/latest [key=value …]`; `--help` lists what there is."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from atrl.cli import run


def main(config: DictConfig) -> None:
    """Score a checkpoint or recorded answers, or compare two results; write `evaluation.json`."""
    from hydra.core.hydra_config import HydraConfig

    from atrl.evaluation.command import evaluate_command

    evaluate_command(config, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    sys.exit(run(main, config_name="evaluate"))
