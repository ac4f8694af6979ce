"""A checkpoint in Hugging Face form: `python export.py checkpoint=outputs/latest path=FOLDER`; `--help` lists more."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from atrl.cli import run


def main(config: DictConfig) -> None:
    """Export a training checkpoint, of any number of ranks, to a folder or the hub."""
    from atrl.export.command import export

    export(config)


if __name__ == "__main__":
    sys.exit(run(main, config_name="export"))
