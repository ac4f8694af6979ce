"""Saves the training state now and then."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback


class CheckpointCallback(Callback):
    """Writes `checkpoints/last.ckpt` (policy, optimizer, counters) every so many steps and at the end.

    Args:
        folder: of the run.
        every: steps; None is only at the end.
    """

    def __init__(self, folder: Path, every: int | None) -> None:
        self._path, self._every = folder / "checkpoints" / "last.ckpt", every

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Save if it is time, counted in training steps."""
        done = batch_idx + 1
        if done == trainer.num_training_batches or (self._every and done % self._every == 0):
            save_atomically(trainer, self._path)


def save_atomically(trainer, path: Path) -> None:
    """Write beside its place first: a killed write leaves the previous checkpoint whole. All ranks must call."""
    beside = path.with_suffix(".tmp")
    trainer.save_checkpoint(beside)
    if trainer.is_global_zero:
        beside.replace(path)
