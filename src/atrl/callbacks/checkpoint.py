"""Saves the training state now and then, and starts from a saved one."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from lightning import Callback

from atrl import parallel
from atrl.callbacks.evaluate import EvaluateCallback
from atrl.checkpoint import Checkpoint, load_tensors, write_checkpoint
from atrl.data.loader import PromptLoader
from atrl.module import PolicyModule
from atrl.weight_sync import named_parameters


class CheckpointCallback(Callback):
    """Writes `checkpoints/step_…` every so many steps and at the end, and begins with `start` if there is one.

    A step is saved once all that it logged is written: before the next one begins. Older checkpoints are deleted, but
    for the ones with the best held-out accuracy.

    Must come first: what other callbacks do when training starts, they do with the policy that it starts from.

    Args:
        folder: of the run.
        every: steps; None is only at the end.
        keep_best: how many of the evaluated checkpoints stay.
        loader: of the prompts, whose place in the data is saved.
        evaluation: tells which checkpoints are best; None keeps none but the last.
        settings: of the run: its `config`, and the fingerprint of its `data`.
        started: the run, in seconds of the clock; what earlier parts of it took is taken off.
        start: where training starts from; None is the beginning.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int | None,
        keep_best: int,
        loader: PromptLoader,
        evaluation: EvaluateCallback | None,
        settings: dict[str, Any],
        started: float,
        start: Checkpoint | None,
    ) -> None:
        self._root, self._every, self._keep_best = folder / "checkpoints", every, keep_best
        self._loader, self._evaluation, self._settings, self._start = loader, evaluation, settings, start
        self._started = started
        self._saved = 0 if start is None else start.step
        self._scores: dict[str, float] = {}
        if start is not None:
            loader.load_state_dict(start.state["loader"])
            self._scores = dict(start.state["scores"])

    def on_train_start(self, trainer, pl_module: PolicyModule) -> None:
        """Give policy, optimizer, schedule and the other callbacks their saved state, and the sampler the policy."""
        if self._start is None:
            return
        state = self._start.state
        pl_module.resume_at(self._start.step, state["phases"])
        trainer.fit_loop.epoch_loop.on_load_checkpoint({"_batches_that_stepped": self._start.step})
        load_tensors(self._start, pl_module.policy, pl_module.optimizers(use_pl_optimizer=False))
        schedule = pl_module.lr_schedulers()
        schedule.load_state_dict(dict(state["schedule"]))
        for group, rate in zip(schedule.optimizer.param_groups, state["schedule"]["_last_lr"], strict=True):
            group["lr"] = rate
        for callback in trainer.callbacks:
            if type(callback).__name__ in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][type(callback).__name__])
        pl_module.rollouts.update_weights(named_parameters(pl_module.policy), version=pl_module.steps_done)

    def on_train_batch_start(self, trainer, pl_module: PolicyModule, batch, batch_idx) -> None:
        """Save what the step before left, if it is time."""
        done = pl_module.steps_done
        due = self._every and done % self._every == 0
        if done > self._saved and (due or self._is_among_the_best(done)):
            self.save(trainer, pl_module)

    def on_train_end(self, trainer, pl_module: PolicyModule) -> None:
        """Save where training ends."""
        if pl_module.steps_done > self._saved:
            self.save(trainer, pl_module)

    def save(self, trainer, pl_module: PolicyModule, *, keep_others: bool = False) -> Path:
        """Write the state after the steps that are done, all ranks together; where it is.

        With `keep_others` no older checkpoint is deleted.
        """
        for logger in trainer.loggers:
            logger.save()
        done = self._saved = pl_module.steps_done
        scored = self._score_of(done)
        if scored is not None:
            self._scores[f"step_{done:06d}"] = scored
        callbacks = {type(callback).__name__: callback.state_dict() for callback in trainer.callbacks}
        state = self._settings | {
            "step": done,
            "seconds": time.time() - self._started,
            "phases": pl_module.timer.total,
            "loader": self._loader.state_after(done),
            "schedule": pl_module.lr_schedulers().state_dict(),
            "callbacks": {name: state for name, state in callbacks.items() if state},
            "scores": self._scores,
        }
        optimizer = pl_module.optimizers(use_pl_optimizer=False)
        written = write_checkpoint(self._root, state, pl_module.policy, optimizer)
        if parallel.rank() == 0 and not keep_others:
            self._delete_all_but(f"step_{done:06d}")
        return written

    def _delete_all_but(self, last: str) -> None:
        kept = {last, *self._best()}
        for folder in self._root.glob("step_*"):
            if folder.name not in kept:
                shutil.rmtree(folder)

    def _best(self) -> list[str]:
        return sorted(self._scores, key=lambda name: (-self._scores[name], name))[: self._keep_best]

    def _score_of(self, done: int) -> float | None:
        if self._evaluation is None or self._evaluation.latest is None or self._evaluation.latest[0] != done:
            return None
        return self._evaluation.latest[1]

    def _is_among_the_best(self, done: int) -> bool:
        score = self._score_of(done)
        if score is None or not self._keep_best:
            return False
        best = self._best()
        return len(best) < self._keep_best or score > self._scores[best[-1]]
