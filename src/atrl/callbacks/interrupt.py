"""Ends a run that is told to end, with what it has done saved."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from typing import cast

from lightning import Callback

from atrl import parallel
from atrl.callbacks.checkpoint import CheckpointCallback
from atrl.interrupts import SIGNALS, Interrupted, spoken
from atrl.module import PolicyModule
from atrl.prompt_module import PromptModule
from atrl.sharding import is_sharded

log = logging.getLogger(__name__)


class InterruptCallback(Callback):
    """On Ctrl-C, SIGTERM or SIGUSR1: saves the last finished step and raises `Interrupted`.

    Between two updates a single process does so at once. In an update, in an evaluation on the way, or where several
    processes train, which must end together, the step is finished first, with all that it leaves. So the run can go on
    as if nothing had been. A second Ctrl-C doesn't wait: then the last finished step is saved where that is possible.

    Lightning's own handler would end a run on SIGTERM with exit code 0 and nothing saved, would have ranks exchange a
    message in the middle of others, and on SLURM's SIGUSR1 would save a state that isn't ours.

    Must come right after `saving`: what that writes is written before the run may be left, and saving comes before an
    engine is closed.

    Args:
        saving: of the run; None where there is nothing to save, in a warm-up.
    """

    def __init__(self, saving: CheckpointCallback | None) -> None:
        self._saving = saving
        self._asked: int | None = None
        self._agreed = False
        self._quiet = False
        """Whether all that was done so far is written down: not between a step's update and the next one's start."""
        self._over = False
        self._module: PromptModule | None = None

    def on_train_start(self, trainer, pl_module: PromptModule) -> None:
        """Take the signals over; Lightning gives them back."""
        self._module, self._quiet = pl_module, True
        _take_signals(self._told)

    def on_train_batch_start(self, trainer, pl_module: PromptModule, batch, batch_idx) -> None:
        """All of the step before is written.

        Raises:
            Interrupted: if the signal came when the end of that step was agreed on already.
        """
        self._quiet = True
        if self._asked is not None and self._may_leave():
            raise Interrupted(self._asked)

    def on_train_batch_end(self, trainer, pl_module: PromptModule, outputs, batch, batch_idx) -> None:
        """Agree on whether this step is the last."""
        self._quiet = False
        asked = [number for number in parallel.gather(self._asked) if number is not None]
        if asked:
            self._asked, self._agreed = asked[0], True
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer, pl_module: PromptModule) -> None:
        """Here the last step's metrics are written, and what follows a whole run has not begun.

        Raises:
            Interrupted: if a signal ended training.
        """
        if self._agreed:
            assert self._asked is not None
            if self._saving is not None:
                self._saving.save(trainer, cast(PolicyModule, pl_module), keep_others=True)
            raise Interrupted(self._asked)

    def on_train_end(self, trainer, pl_module: PromptModule) -> None:
        """All steps are done, and saved."""
        self._over = True

    def on_exception(self, trainer, pl_module: PromptModule, exception: BaseException) -> None:
        """Save what can be saved, and say where it is."""
        if isinstance(exception, Interrupted):
            _take_signals(signal.SIG_IGN)  # saving is quick, and all that is left to do
            exception.args = (f"{exception} {self._left(pl_module)}",)

    def _left(self, pl_module: PromptModule) -> str:
        """What the run leaves, in a few words."""
        if self._saving is None:
            return "in the warm-up, of which nothing is kept"
        saved = self._saving.save_alone()
        done = f"after step {pl_module.steps_done}" if pl_module.steps_done else "before the first step was done"
        if saved is None:
            return done
        run = saved.parent.parent
        return f"{done}; state in {saved}: the same command with resume=auto hydra.run.dir={run} goes on from there"

    def _told(self, number: int, frame) -> None:
        """The signals' handler: Python calls it between two operations of the main thread."""
        again = self._asked == number == signal.SIGINT
        self._asked = number
        if again or self._may_leave():
            raise Interrupted(number)
        if parallel.rank() == 0:
            log.warning("%s: this step is finished and saved first; a second Ctrl-C leaves at once", spoken(number))

    def _may_leave(self) -> bool:
        if self._over:
            return True
        if parallel.world_size() > 1:
            return False
        if self._saving is None:
            return True
        assert self._module is not None
        return self._quiet and not is_sharded(self._module.policy) and self._saving.is_untouched()


def _take_signals(handler: Callable | signal.Handlers) -> None:
    if threading.current_thread() is threading.main_thread():  # no other may
        for number in SIGNALS:
            signal.signal(number, handler)
