"""`metrics.csv`."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment


class MetricsFile(CSVLogger):
    """Lightning's logger, which goes on with the file of a run that goes on instead of deleting it.

    Args:
        resume: as of the run; None starts a new file.
        options: of Lightning's logger.
    """

    def __init__(self, save_dir: str, *, resume: str | None = None, **options) -> None:
        super().__init__(save_dir, **options)
        self._goes_on = resume is not None

    def log_hyperparams(self, params=None) -> None:
        """Nothing: `config.yaml` has them."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the file; made when it is first used. On ranks but the first, which alone writes, a dummy."""
        file = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        if self._experiment is not None or not (self._goes_on and file.is_file()):
            return super().experiment
        written = file.read_text(encoding="utf-8")
        writer = super().experiment  # deletes the file
        file.write_text(written, encoding="utf-8")
        writer.metrics_keys = written.split("\n", 1)[0].split(",")
        return writer
