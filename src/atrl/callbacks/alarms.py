"""Watches a run's metrics, warns, and stops it with a checkpoint when they say that it has gone wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning import Callback
from lightning.pytorch.utilities import rank_zero_warn

from atrl import parallel
from atrl.alarms import Alarm, AlarmStop, Bound
from atrl.callbacks.checkpoint import CheckpointCallback
from atrl.module import PolicyModule

LOSS = "loss/policy"


class AlarmCallback(Callback):
    """Looks at the metrics of every step; where a bound is passed on one rank, all stop together.

    A run that stops leaves a checkpoint, from which it can go on with other settings, beside those it had, and raises
    `AlarmStop`: after the step's metrics are written, before the policy is evaluated. A loss or gradient that is not
    finite stops a run without this callback too, and `CheckpointCallback` saves.

    Args:
        bounds: by the alarm's name.
        patience: steps in a row beyond a bound before it counts: one bad batch is no alarm.
    """

    def __init__(self, *, bounds: Mapping[str, Bound | None] | None = None, patience: int = 3) -> None:
        if patience < 1:
            raise ValueError(f"callbacks.alarms.patience must be at least 1, got {patience}")
        given = {name: bound for name, bound in (bounds or {}).items() if bound is not None}
        self._alarms = {name: Alarm(name, bound, patience) for name, bound in given.items()}
        self._cause: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """What the bounds are relative to, and for how long they have been passed."""
        return {name: [alarm.first, alarm.beyond_warn, alarm.beyond_stop] for name, alarm in self._alarms.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; alarms that are new begin."""
        for name, alarm in self._alarms.items():
            if name in state:
                first, alarm.beyond_warn, alarm.beyond_stop = state[name]
                alarm.first = list(first)

    def on_train_batch_end(self, trainer, pl_module: PolicyModule, outputs, batch, batch_idx) -> None:
        """Warn, or tell the trainer to end after this step."""
        step = pl_module.last_step
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()} | step.metrics
        causes = []
        if not math.isfinite(metrics[LOSS]):
            causes.append(f"alarm non_finite: the loss is {metrics[LOSS]}, though the gradient is finite")
        for alarm in self._alarms.values():
            if alarm.bound.metric not in metrics:
                continue
            verdict, line = alarm.look(metrics[alarm.bound.metric])
            if verdict == "warn":
                rank_zero_warn(f"step {step.step}: {line}")
            if verdict == "stop":
                causes.append(line)
        # Seconds and bytes are each rank's own, and a rank that ended by itself would leave the others waiting.
        causes = [cause for found in parallel.gather(causes) for cause in found]
        if causes:
            self._cause = f"step {step.step}: {causes[0]}"
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer, pl_module: PolicyModule) -> None:
        """Here the last step's metrics are written, and what follows a whole run has not begun.

        Raises:
            AlarmStop: if an alarm ended training.
        """
        if self._cause is not None:
            saved = _checkpoints(trainer).save(trainer, pl_module, keep_others=True)
            raise AlarmStop(f"{self._cause}; state in {saved}")


def _checkpoints(trainer) -> CheckpointCallback:
    return next(callback for callback in trainer.callbacks if isinstance(callback, CheckpointCallback))
