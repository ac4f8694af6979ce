"""Leaves every step so that it can be computed again."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning import Callback

from atrl import parallel
from atrl.module import PolicyModule
from atrl.replay.step_file import RecordedStep, write_step


class StepFileCallback(Callback):
    """Writes `steps/NNNNNN.safetensors` after every step: all ranks' rollouts and what was made of them.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_train_batch_end(self, trainer, pl_module: PolicyModule, outputs, batch, batch_idx) -> None:
        """Write, by the first rank."""
        shares = parallel.gather_to_first(RecordedStep.of(pl_module.last_step))
        if shares is not None:
            facts = {"threads": torch.get_num_threads(), "processes": parallel.world_size()}
            write_step(self._folder, pl_module.last_step.step, RecordedStep.joined(shares), facts)
