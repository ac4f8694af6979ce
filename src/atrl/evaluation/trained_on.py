"""Whether held-out problems are of the kind that a checkpoint was trained on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from atrl.composed import Composed
from atrl.models.asked import run_of

_SOURCE = ("_target_", "path")
"""What makes two sources other problems, and not only other numbers of them."""


def check_problems(checkpoint: str, data: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse to score a run on problems that it wasn't trained on and nobody named.

    Args:
        checkpoint: the folder of a run or of its model; of anything else it isn't known what it was trained on.
        data: what it would be scored on.
        overrides: of the command.

    Raises:
        ValueError: with the command that scores the run on its own problems.
    """
    if any(word.lstrip("+~").partition("=")[0].split(".")[0] == "data" for word in overrides):
        return
    run = run_of(Path(checkpoint).expanduser())
    settings = run / "config.yaml"
    if not settings.is_file():
        return
    trained = OmegaConf.select(OmegaConf.load(settings), "data")
    if trained is None or all(trained.get(key) == data.get(key) for key in _SOURCE):
        return
    from atrl.leave import next_commands

    composed = Composed.read(run)
    if "data" not in composed.choices:
        return
    own, *_ = next_commands(checkpoint, composed.overrides or [], composed.choices)
    more = [word for word in shlex.split(own)[1:] if word not in overrides and not word.startswith("checkpoint=")]
    raise ValueError(
        f"{checkpoint} was trained on data={composed.choices['data']}: say which problems it is to be scored on, "
        f"its own by {shlex.join(more)}, or those of the demo by data=geometry"
    )
