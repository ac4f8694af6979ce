"""Saves the training state now and then, and that of the last finished step when a run breaks off."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finished:
    """Where a run stood at the end of a step."""

    steps: int
    """Training steps done."""
    updates: int
    """Optimizer steps taken."""
    loops: dict[str, Any]
    """Lightning's counters and the loader's place in the data, as a checkpoint holds them."""


class CheckpointCallback(Callback):
    """Writes `checkpoints/last.ckpt` (policy, optimizer, counters) every so many steps and at the end.

    When a run breaks off, the state of the last finished step is written there, as long as nothing has changed it
    since: until a step's first update the weights are those of the step before, and after its last they are its own.

    Args:
        folder: of the run.
        every: steps; None is only at the end.
    """

    def __init__(self, folder: Path, every: int | None) -> None:
        self._path, self._every = folder / "checkpoints" / "last.ckpt", every
        self._trainer: Trainer | None = None
        self._finished: Finished | None = None
        self._on_disk = 0

    def on_train_start(self, trainer, pl_module) -> None:
        """From here on there is something to save."""
        self._trainer = trainer

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Save if it is time, counted in training steps."""
        done = batch_idx + 1
        self._finished = Finished(pl_module.steps_done, trainer.global_step, _loops(trainer))
        if done == trainer.num_training_batches or (self._every and done % self._every == 0):
            trainer.save_checkpoint(self._beside)
            if trainer.is_global_zero:
                self._beside.replace(self._path)
            self._on_disk = pl_module.steps_done

    def on_exception(self, trainer, pl_module, exception: BaseException) -> None:
        """Save the last finished step and say so; the error itself goes on. Ctrl-C doesn't wait for it."""
        if isinstance(exception, Exception) and self._trainer is not None:
            try:
                log.error("the run broke off (%s); %s", type(exception).__name__, self.rescue())
            except Exception as error:  # the first one matters more
                log.error("the run broke off, and saving its last finished step failed: %s", error)

    def rescue(self) -> str:
        """Write the last finished step if it isn't on disk yet; what is there then, in a few words.

        No process waits for another here: those may be gone, or hang.
        """
        trainer = self._trainer
        found = None if trainer is None else self._last_finished(trainer)
        if found is None or found.steps <= self._on_disk:
            return f"{self._path} holds step {self._on_disk}" if self._on_disk else "no step was finished"
        if any(isinstance(parameter, DTensor) for parameter in trainer.lightning_module.parameters()):
            return f"the policy is sharded, and step {found.steps} can't be saved by one process alone" + (
                f"; {self._path} holds step {self._on_disk}" if self._on_disk else ""
            )
        if trainer.is_global_zero:
            # Lightning's own `save_checkpoint` would wait for the other processes.
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(checkpoint | {"loops": found.loops}, self._beside)
            self._beside.replace(self._path)
        self._on_disk = found.steps
        return f"{self._path} holds step {found.steps}"

    def _last_finished(self, trainer: Trainer) -> Finished | None:
        """The step whose state policy and optimizer are in; None in the middle of an update, or before the first."""
        module: LightningModule = trainer.lightning_module
        last = self._finished or Finished(0, 0, {})
        if module.steps_done == last.steps:
            return last if last.steps and trainer.global_step == last.updates else None
        # The step's updates are done, but not all that follows them: Lightning may not have counted it yet.
        loops = _loops(trainer)
        progress = loops["fit_loop"]["epoch_loop.batch_progress"]
        if progress["current"]["processed"] < progress["current"]["ready"]:
            for counted in (progress["current"], progress["total"]):
                counted["processed"] += 1
        return Finished(module.steps_done, trainer.global_step, loops)

    @property
    def _beside(self) -> Path:
        """Written first, so that a killed write leaves the previous checkpoint whole."""
        return self._path.with_suffix(".tmp")


def _loops(trainer: Trainer) -> dict[str, Any]:
    return copy.deepcopy(trainer._checkpoint_connector._get_loops_state_dict())
