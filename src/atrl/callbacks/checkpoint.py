"""Saves the training state now and then and when a run breaks off."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from lightning import Callback, Trainer

from atrl import parallel
from atrl.alarms import AlarmStop, NonFiniteStop
from atrl.callbacks.evaluate import EvaluateCallback
from atrl.checkpoint import Checkpoint, write_checkpoint
from atrl.data.loader import PromptLoader
from atrl.module import PolicyModule
from atrl.schedule import optimizer_of
from atrl.sharding import is_sharded
from atrl.tracking import KeepsFiles

log = logging.getLogger(__name__)


class CheckpointCallback(Callback):
    """Writes `checkpoints/step_…` every so many steps and at the end, and begins with `start` if there is one.

    A step is saved once all that it logged is written: before the next one begins. Older checkpoints are deleted, but
    for the ones with the best held-out accuracy.

    When a run breaks off, the last finished step is saved as well, unless the update of the next one is under way:
    until its first optimizer step policy and optimizer are those of the step before, and after its last its own. A step
    that broke off between its update and its end is saved too; then what it logged is missing.

    Must come before the sampler's callback: closing a broken engine may take long, which saving must not wait for.

    Args:
        folder: of the run.
        every: steps; None is only at the end.
        keep_best: how many of the evaluated checkpoints stay.
        loader: of the prompts, whose place in the data is saved.
        evaluation: tells which checkpoints are best; None keeps none but the last.
        settings: of the run: its `config`, and the fingerprint of its `data`.
        started: the run, in seconds of the clock; what earlier parts of it took is taken off.
        start: the checkpoint that training starts from, by a `StartCallback` before this one; None is the beginning.
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
        self._loader, self._evaluation, self._settings = loader, evaluation, settings
        self._started = started
        self._saved = 0 if start is None else start.step
        self._scores: dict[str, float] = {} if start is None else dict(start.state["scores"])
        self._trainer: Trainer | None = None
        self._at_rest = (0, 0)  # training steps and optimizer steps at the end of a step
        self._rescuing = threading.Lock()

    def on_train_start(self, trainer, pl_module: PolicyModule) -> None:
        """Note where the run stands, and stand by for its end.

        Raises:
            ValueError: as `states_of`; at the first checkpoint, perhaps the only one, all steps would be lost.
        """
        states_of(trainer.callbacks)
        self._trainer = trainer
        self._at_rest = (pl_module.steps_done, _updates(trainer).completed)
        _before_lightning_kills(self._announce)

    def on_train_batch_start(self, trainer, pl_module: PolicyModule, batch, batch_idx) -> None:
        """Save what the step before left, if it is time."""
        done = pl_module.steps_done
        due = self._every and done % self._every == 0
        if done > self._saved and (due or self._is_among_the_best(done)):
            self.save(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module: PolicyModule, outputs, batch, batch_idx) -> None:
        """Note where the run stands."""
        self._at_rest = (pl_module.steps_done, _updates(trainer).completed)

    def on_exception(self, trainer, pl_module: PolicyModule, exception: BaseException) -> None:
        """Save the last finished step; the error itself goes on. Ctrl-C doesn't wait for that, and alarms save.

        What is not finite stops all ranks, which save together what the step that is given up has left untouched.
        """
        if isinstance(exception, NonFiniteStop):
            saved = self.save_untouched(trainer, pl_module)
            where = "" if saved is None else f"; state in {saved}"
            exception.args = (f"step {pl_module.steps_done + 1}: {exception}{where}",)
        elif isinstance(exception, Exception) and not isinstance(exception, AlarmStop):
            self._announce(f"{type(exception).__name__}: {exception}")

    def on_train_end(self, trainer, pl_module: PolicyModule) -> None:
        """Save where training ends."""
        if pl_module.steps_done > self._saved:
            self.save(trainer, pl_module)

    def save(self, trainer, pl_module: PolicyModule, *, keep_others: bool = False) -> Path:
        """Write the state after the steps that are done, all ranks together; where it is.

        With `keep_others` no older checkpoint is deleted.
        """
        self._write(trainer, pl_module, keep_others=keep_others)
        saved = self._root / f"step_{self._saved:06d}"
        for logger in trainer.loggers if parallel.rank() == 0 else ():
            if isinstance(logger, KeepsFiles) and logger.log_model == "all":
                logger.log_folder(saved, kind="checkpoint")
        return saved

    def save_untouched(self, trainer, pl_module: PolicyModule) -> Path | None:
        """Save the last finished step, all ranks together, if it isn't yet and the next one has not changed it.

        Where the last finished step that is saved lies; None where none is. Other checkpoints stay.
        """
        if self._finished_step() == pl_module.steps_done > self._saved:
            return self.save(trainer, pl_module, keep_others=True)
        last = self._root / f"step_{self._saved:06d}"
        return last if last.is_dir() else None

    def is_untouched(self) -> bool:
        """Whether policy and optimizer are as the last step left them that came to its end."""
        return self._finished_step() == self._at_rest[0]

    def rescue(self) -> str:
        """As `save_alone`, in a few words."""
        saved = self.save_alone()
        return "no finished step could be saved" if saved is None else f"{saved} is saved"

    def save_alone(self) -> Path | None:
        """Save the last finished step if it isn't yet; where the last is that is saved, None where none is.

        No rank waits for another here: those may be gone, or hang. So of a sharded policy nothing can be saved.
        """
        with self._rescuing:  # an error here and the end of another process may come together
            if self._trainer is not None and parallel.rank() == 0:
                module, done = self._module, self._finished_step()
                if done is not None and done > self._saved and not is_sharded(module.policy):
                    self._write(self._trainer, module, still=lambda: self._finished_step() == done)
        last = self._root / f"step_{self._saved:06d}"
        return last if last.is_dir() else None

    def _announce(self, cause: str) -> None:
        log.error("the run breaks off: %s", " ".join(cause.split()))
        try:
            log.error("the run broke off; %s", self.rescue())
        except Exception as error:  # the first one matters more
            log.error("the run broke off; its last finished step can't be saved: %s: %s", type(error).__name__, error)

    @property
    def _module(self) -> PolicyModule:
        assert self._trainer is not None, "training has not begun"
        return cast(PolicyModule, self._trainer.lightning_module)

    def _finished_step(self) -> int | None:
        """The step whose state policy and optimizer are in; None in the middle of an update."""
        done, (last, updates), taken = self._module.steps_done, self._at_rest, _updates(self._trainer)
        if taken.ready != taken.completed or (done == last and taken.completed != updates):
            return None
        return done

    def _write(
        self,
        trainer,
        pl_module: PolicyModule,
        *,
        keep_others: bool = False,
        still: Callable[[], bool] | None = None,
    ) -> None:
        for logger in trainer.loggers:
            logger.save()
        done = pl_module.steps_done
        scored = self._score_of(done)
        if scored is not None:
            self._scores[f"step_{done:06d}"] = scored
        state = self._settings | {
            "step": done,
            "seconds": time.time() - self._started,
            "phases": pl_module.timer.total,
            "loader": self._loader.state_after(done),
            "callbacks": states_of(trainer.callbacks),
            "scores": self._scores,
        }
        if not write_checkpoint(self._root, state, pl_module.policy, optimizer_of(pl_module), still=still):
            return
        self._saved = done
        if parallel.rank() == 0 and not keep_others:
            self._delete_all_but(f"step_{done:06d}")

    def _delete_all_but(self, last: str) -> None:
        kept = {last, *self._best()}
        for folder in self._root.glob("step_*"):
            if folder.name not in kept:
                shutil.rmtree(folder)

    def _best(self) -> list[str]:
        return sorted(self._scores, key=lambda name: (-self._scores[name], name))[: self._keep_best]

    def _score_of(self, done: int) -> float | None:
        found = None if self._evaluation is None else self._evaluation.scored_at(done)
        return None if found is None else found.sampled.accuracy

    def _is_among_the_best(self, done: int) -> bool:
        score = self._score_of(done)
        if score is None or not self._keep_best:
            return False
        best = self._best()
        return len(best) < self._keep_best or score > self._scores[best[-1]]


def states_of(callbacks: Iterable[Callback]) -> dict[str, Any]:
    """What callbacks keep in a checkpoint, by `state_key`: the class, where it doesn't say. Nothing of one that keeps
    nothing.

    Raises:
        ValueError: if that is more than JSON has.
    """
    states = {}
    for callback in callbacks:
        if state := callback.state_dict():
            try:
                json.dumps(state)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"callbacks: what {type(callback).__name__}.state_dict returns can't be kept in a checkpoint "
                    f"({error}): let it return numbers, texts, lists and dictionaries of these"
                ) from error
            states[callback.state_key] = state
    return states


def _updates(trainer: Trainer):
    """Lightning's count of optimizer steps, begun (`ready`) and done (`completed`)."""
    return trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total


def _before_lightning_kills(announce: Callable[[str], None]) -> None:
    """Call `announce` in the first process when another one ends early, before Lightning ends this one too.

    Private names: where Lightning started the other processes, a thread of it looks after them, and kills all with
    SIGKILL and hardly a word when one fails. Other launchers have none.
    """
    observers: list[Any] = [thread for thread in threading.enumerate() if thread.name == "child-process-observer"]
    for thread in observers:

        def end(thread=thread, kill=thread._terminate_all) -> None:
            codes = {rank: process.returncode for rank, process in enumerate(thread._child_processes, start=1)}
            ended = ", ".join(f"{rank} with code {code}" for rank, code in codes.items() if code)
            announce(f"the process of rank {ended} ended (a negative code is a signal: -9 is SIGKILL)")
            kill()

        thread._terminate_all = end
