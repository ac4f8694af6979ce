"""The progress bar."""

from __future__ import annotations

from lightning.pytorch.callbacks import TQDMProgressBar

_BAR = "{desc} {percentage:3.0f}%|{bar:20}| step {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"


class StepProgressBar(TQDMProgressBar):
    """Step, reward, accuracy, tokens per second and the time left; nothing else."""

    def get_metrics(self, trainer, pl_module) -> dict[str, int | str | float | dict[str, float]]:
        """Lightning's metrics less the logger's version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def init_train_tqdm(self):
        """One bar for the whole run: the epoch is of no interest here."""
        bar = super().init_train_tqdm()
        bar.bar_format = _BAR
        return bar

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        """Name the bar after what goes on."""
        super().on_train_epoch_start(trainer, pl_module)
        self.train_progress_bar.set_description_str("training")
