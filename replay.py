"""Compute a recorded step again: `python replay.py run=outputs/latest step=3`; `--help` lists what there is."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from atrl.cli import run

EXIT_DIFFERS = 1


def main(config: DictConfig) -> None:
    """Compare a step's record with what its responses give when it is computed again; exit with 1 if they differ."""
    from hydra.core.hydra_config import HydraConfig

    from atrl.replay.run import replay

    if not replay(config, Path(HydraConfig.get().runtime.output_dir)):
        raise SystemExit(EXIT_DIFFERS)


if __name__ == "__main__":
    sys.exit(run(main, config_name="replay"))
