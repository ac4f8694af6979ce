"""A run on Weights & Biases: metrics, rollouts to look at, settings, code version, files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from atrl.report.token_html import token_html
from atrl.tracking import TABLE, LogModel, ShownRollout, TableSettings
from atrl.versions import git_revision

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = ("step", "problem", "status", "reward", "advantage", "question", "gold", "picture", "response")
MAX_SIDE = 448
"""Pixels along the longer side of a picture in the table."""
MAX_TEXT = 2000
"""Characters of a question or gold answer in the table."""


class RunLogger(WandbLogger):
    """Lightning's logger, which also takes tables of rollouts, models and the run's summary.

    What an offline run refers to is kept in its own folder, so that `wandb sync` finds all of it as long as that lies
    where it was written.

    Args:
        table: how many rollouts are shown, and how often.
        log_model: true for the trained model, "all" for each checkpoint as well.
        options: of Lightning's logger and of `wandb.init`.
    """

    def __init__(self, *, table: TableSettings, log_model: LogModel, offline: bool, save_dir: str, **options) -> None:
        import wandb

        self.table, self.log_model = table, log_model
        self._data = Path(save_dir) / "wandb" if offline else None
        revision = git_revision(Path(__file__).parent)
        # `mode` is given as well: the variable that Lightning sets for `offline` comes too late for W&B to see it.
        super().__init__(
            save_dir=save_dir,
            offline=offline,
            mode="offline" if offline else "online",
            log_model=False,  # Lightning's own looks for its own checkpoints
            resume="allow",
            settings=wandb.Settings(git_commit=None if revision is None else revision.rstrip("+")),
            **options,
        )

    @rank_zero_only
    def log_rollouts(self, shown: Sequence[ShownRollout], *, step: int) -> None:
        """A table of `shown`, their tokens coloured by weight."""
        import wandb

        with self._in_own_folder():
            table = wandb.Table(columns=list(COLUMNS))
            for rollout in shown:
                row = rollout.row
                sheet = side_by_side(rollout.pictures)
                html = token_html(row["tokens"], row["weights"], row["anchors"], most=self.table.tokens)
                table.add_data(
                    *(row["step"], row["problem"], row["status"], row["reward"], row["advantage"]),
                    *(row["question"][:MAX_TEXT], row["gold"][:MAX_TEXT]),
                    None if sheet is None else wandb.Image(sheet),
                    wandb.Html(html, inject=False),
                )
            self.experiment.log({TABLE: table, "trainer/global_step": step})

    @rank_zero_only
    def log_folder(self, folder: Path, *, kind: Literal["model", "checkpoint"]) -> None:
        """`folder` as the next version of the run's artifact of this kind."""
        import wandb

        with self._in_own_folder():
            artifact = wandb.Artifact(f"{self.experiment.id}-{kind}", type=kind, metadata={"folder": folder.name})
            artifact.add_dir(str(folder))
            self.experiment.log_artifact(artifact)

    @rank_zero_only
    def log_summary(self, summary: dict[str, Any]) -> None:
        """The content of `summary.json` beside the metrics' last values."""
        self.experiment.summary.update({"summary": summary})

    @contextmanager
    def _in_own_folder(self) -> Iterator[None]:
        """W&B stages what tables and artifacts hold; for an offline run in its own folder, unless the user says."""
        if self._data is None or "WANDB_DATA_DIR" in os.environ:
            yield
            return
        os.environ["WANDB_DATA_DIR"] = str(self._data.absolute())
        try:
            yield
        finally:
            del os.environ["WANDB_DATA_DIR"]


def side_by_side(pictures: Sequence[Image]) -> Image | None:
    """One picture of all, none larger than `MAX_SIDE`; None of nothing."""
    from PIL import Image

    if not pictures:
        return None
    small = []
    for picture in pictures:
        copy = picture.convert("RGB")
        copy.thumbnail((MAX_SIDE, MAX_SIDE))
        small.append(copy)
    sheet = Image.new("RGB", (sum(p.width for p in small), max(p.height for p in small)), "white")
    left = 0
    for picture in small:
        sheet.paste(picture, (left, 0))
        left += picture.width
    return sheet
