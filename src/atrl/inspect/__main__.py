"""Inspect one answer: `python -m atrl.inspect checkpoint=tiny problem=0`; `--help` lists what there is."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

import atrl
from atrl.cli import run

CONFIGS = Path(atrl.__file__).parents[2] / "conf"


def main(config: DictConfig) -> None:
    """Answer one question, and show each token's weight by each scheme in the terminal and on a page."""
    from hydra.core.hydra_config import HydraConfig

    from atrl.inspect.command import inspect_command

    inspect_command(config, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    sys.exit(run(main, config_name="inspect", config_path=CONFIGS))
