"""Watches a run's metrics, warns, and stops it with a checkpoint when they say that it has gone wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from lightning import Callback
from lightning.pytorch.utilities import rank_zero_warn

from atrl.alarms import AlarmStop, Bound, NonFiniteStop, Watch
from atrl.callbacks.checkpoint import save_atomically
from atrl.metrics import rollout_metrics
from atrl.module import PolicyModule

LOSS = "loss/policy"


class AlarmCallback(Callback):
    """Looks at the metrics of every step, which are the same on every rank, so that all stop together.

    A run that stops leaves `checkpoints/alarm.ckpt` and raises `AlarmStop`, once the step's metrics are written and
    before the policy is evaluated. After a loss or gradient that is not finite the checkpoint holds the weights from
    before the step; otherwise those after it.

    Args:
        bounds: by the alarm's name.
        patience: steps in a row beyond a bound before it counts: one bad batch is no alarm.
    """

    def __init__(self, *, bounds: Mapping[str, Bound] | None = None, patience: int = 3) -> None:
        if patience < 1:
            raise ValueError(f"callbacks.alarms.patience must be at least 1, got {patience}")
        self._watches = [Watch(name, bound, patience) for name, bound in (bounds or {}).items() if bound is not None]
        self._cause: str | None = None

    def on_train_batch_end(self, trainer, pl_module: PolicyModule, outputs, batch, batch_idx) -> None:
        """Warn, or save and tell the trainer to end after this step."""
        step = pl_module.last_step
        metrics = rollout_metrics(step, 1.0) | step.metrics
        if not math.isfinite(metrics.get(LOSS, 0.0)):
            self._cause = f"alarm non_finite: the loss is {metrics[LOSS]}, though the gradient is finite"
        for watch in self._watches:
            if self._cause is None and watch.bound.metric in metrics:
                verdict, line = watch.look(metrics[watch.bound.metric])
                if verdict == "warn":
                    rank_zero_warn(f"step {step.step}: {line}")
                if verdict == "stop":
                    self._cause = line
        if self._cause is not None:
            self._cause = f"step {step.step}: {self._cause}"
            save_atomically(trainer, _path(trainer))
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer, pl_module: PolicyModule) -> None:
        """Here the last step's metrics are written, and what follows a whole run has not begun.

        Raises:
            AlarmStop: if an alarm ended training.
        """
        if self._cause is not None:
            raise AlarmStop(f"{self._cause}; stopped, state in {_path(trainer)}")

    def on_exception(self, trainer, pl_module: PolicyModule, exception: BaseException) -> None:
        """Save what a step that was given up has left untouched."""
        if isinstance(exception, NonFiniteStop):
            pl_module.policy.zero_grad()
            save_atomically(trainer, _path(trainer))
            exception.args = (f"step {pl_module.steps_done + 1}: {exception}; state in {_path(trainer)}",)


def _path(trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints" / "alarm.ckpt"
