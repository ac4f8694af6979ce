"""Saves the training state now and then, and that of the last finished step when a run breaks off."""

from __future__ import annotations

import copy
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
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

    When a run breaks off, the state of the last finished step is written there, the same as a checkpoint of that step
    would hold, unless the update of the next one is under way: until its first optimizer step the weights are those of
    the step before, and after its last they are its own.

    It goes before the other callbacks: closing a broken engine may take long, and saving must not wait for it.

    Args:
        folder: of the run.
        every: steps; None is only at the end.
    """

    def __init__(self, folder: Path, every: int | None) -> None:
        self._path, self._every = folder / "checkpoints" / "last.ckpt", every
        self._trainer: Trainer | None = None
        self._finished = Finished(0, 0, {})
        self._on_disk = 0
        self._saving = threading.Lock()

    def on_train_start(self, trainer, pl_module) -> None:
        """From here on there is something to save."""
        self._trainer = trainer
        self._finished = Finished(pl_module.steps_done, trainer.global_step, _loops(trainer))
        _before_lightning_kills(self._announce)

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
        """Save the last finished step; the error itself goes on. Ctrl-C doesn't wait for that."""
        if isinstance(exception, Exception):
            self._announce(f"{type(exception).__name__}: {exception}")

    def rescue(self) -> str:
        """Write the last finished step if it isn't on disk yet; what is there then, in a few words.

        No process waits for another here: those may be gone, or hang.
        """
        with self._saving:  # an error here and the end of another process may come together
            if self._trainer is not None:
                self._save_last_finished(self._trainer)
        return f"{self._path} holds step {self._on_disk}" if self._on_disk else "no finished step could be saved"

    def _announce(self, cause: str) -> None:
        log.error("the run breaks off: %s", " ".join(cause.split()))
        try:
            log.error("the run broke off; %s", self.rescue())
        except Exception as error:  # the first one matters more
            log.error("the run broke off; its last finished step can't be saved: %s: %s", type(error).__name__, error)

    def _save_last_finished(self, trainer: Trainer) -> None:
        found = self._last_finished(trainer)
        sharded = any(isinstance(parameter, DTensor) for parameter in trainer.lightning_module.parameters())
        if found is None or found.steps <= self._on_disk or sharded:  # one process alone can't put shards together
            return
        if trainer.is_global_zero:
            # Lightning's own `save_checkpoint` would wait for the other processes.
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(checkpoint | {"loops": found.loops}, self._beside)
            now = self._last_finished(trainer)
            if now is None or now.steps != found.steps:  # this thread is not the trainer's, and training went on
                self._beside.unlink()
                return
            self._beside.replace(self._path)
        self._on_disk = found.steps

    def _last_finished(self, trainer: Trainer) -> Finished | None:
        """The step whose state policy and optimizer are in; None in the middle of an update."""
        module, last = trainer.lightning_module, self._finished
        updates = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
        if updates.ready != updates.completed:
            return None
        if module.steps_done == last.steps:
            return last if updates.completed == last.updates else None
        # The step's updates are done, but not all that follows them: Lightning may not have counted it yet.
        loops = _loops(trainer)
        progress = loops["fit_loop"]["epoch_loop.batch_progress"]
        if progress["current"]["processed"] < progress["current"]["ready"]:
            for counted in (progress["current"], progress["total"]):
                counted["processed"] += 1
        return Finished(module.steps_done, updates.completed, loops)

    @property
    def _beside(self) -> Path:
        """Written first, so that a killed write leaves the previous checkpoint whole."""
        return self._path.with_suffix(".tmp")


def _loops(trainer: Trainer) -> dict[str, Any]:
    return copy.deepcopy(trainer._checkpoint_connector._get_loops_state_dict())


def _before_lightning_kills(announce) -> None:
    """Call `announce` in the first process when another one ends early, before Lightning ends this one too.

    Private names: where Lightning started the other processes, a thread of it looks after them, and kills all with
    SIGKILL and hardly a word when one fails. Other launchers have none.
    """
    for thread in threading.enumerate():
        if thread.name != "child-process-observer":
            continue

        def end(thread=thread, kill=thread._terminate_all) -> None:
            codes = {rank: process.returncode for rank, process in enumerate(thread._child_processes, start=1)}
            ended = ", ".join(f"{rank} with code {code}" for rank, code in codes.items() if code)
            announce(f"the process of rank {ended} ended (a negative code is a signal: -9 is SIGKILL)")
            kill()

        thread._terminate_all = end
