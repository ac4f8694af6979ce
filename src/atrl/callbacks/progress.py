"""The progress bar."""

from __future__ import annotations

import io
import sys

from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

_BAR = "{desc} {percentage:3.0f}%|{bar:20}| step {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"

LINES = 40
"""That a run leaves in a log file, about."""


class StepProgressBar(TQDMProgressBar):
    """Step, reward, accuracy, tokens per second and the time left; nothing else.

    Where standard output is no terminal, as in a file or a cluster's log, it is a line now and then: a bar draws itself
    anew at every step, and each of these drawings would stay.
    """

    def get_metrics(self, trainer, pl_module) -> dict[str, int | str | float | dict[str, float]]:
        """Lightning's metrics less the logger's version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def init_train_tqdm(self) -> Tqdm:
        """One bar for the whole run: the epoch is of no interest here."""
        self._in_lines = not (self.is_disabled or sys.stdout.isatty())
        bar = Tqdm(file=io.StringIO(), smoothing=0) if self._in_lines else super().init_train_tqdm()
        bar.bar_format = _BAR
        return bar

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        """Name the bar after what goes on."""
        super().on_train_epoch_start(trainer, pl_module)
        self.train_progress_bar.set_description_str("training")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        """Draw the bar, or print a line."""
        if not self._in_lines:
            return super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        bar, step = self.train_progress_bar, batch_idx + 1
        if step % max(1, bar.total // LINES) == 0 or step == bar.total:
            bar.n = step
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            print(bar, flush=True)
        return None
