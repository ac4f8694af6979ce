"""Which loggers a run has and what is said to them; the libraries behind them load when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable
from uuid import uuid4

from atrl.launch import main_process

if TYPE_CHECKING:
    from lightning import Trainer
    from lightning.pytorch.loggers import TensorBoardLogger
    from PIL.Image import Image

    from atrl.prompt_module import PromptModule
    from atrl.wandb_run import RunLogger

METRIC_GROUPS = ("reward", "rollout", "credit", "loss", "time", "memory", "eval")
"""Every metric is called ``group/name``."""
TABLE = "rollout/samples"
"""What the table of rollouts is called."""
MAX_TAG = 64
"""Characters of a tag; W&B refuses longer ones."""

LogModel = Literal["all"] | bool


@dataclass(frozen=True, slots=True)
class TableSettings:
    """How many rollouts a table shows.

    Args:
        every: training steps from one table to the next; the first step always leaves one.
        rollouts: in a table.
        tokens: of a response; a longer one is cut.
    """

    every: int
    rollouts: int
    tokens: int

    def is_due(self, step: int) -> bool:
        """Whether a table comes after training step `step`, counted from 1."""
        return self.rollouts > 0 and (step - 1) % self.every == 0


@dataclass(frozen=True, slots=True)
class ShownRollout:
    """A line of the table; its texts are what the model and the data say, and nothing is escaped yet."""

    row: dict[str, Any]
    """As in `rollouts.jsonl`."""
    pictures: Sequence[Image]
    """Of the prompt, in order; a video is a strip of its frames."""


@runtime_checkable
class ShowsRollouts(Protocol):
    """A logger that has a place for rollouts."""

    table: TableSettings

    def log_rollouts(self, shown: Sequence[ShownRollout], *, step: int) -> None:
        """Show them at `step`, counted as the metrics' steps are."""
        ...


@runtime_checkable
class KeepsFiles(Protocol):
    """A logger that takes what a run leaves."""

    log_model: LogModel

    def log_folder(self, folder: Path, *, kind: Literal["model", "checkpoint"]) -> None:
        """Keep a copy of `folder`."""
        ...

    def log_summary(self, summary: dict[str, Any]) -> None:
        """Keep the content of `summary.json`."""
        ...


def wandb_logger(
    *,
    project: str = "atrl",
    entity: str | None = None,
    save_dir: str = ".",
    name: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    mode: Literal["auto", "online", "offline"] = "auto",
    resume: str | None = None,
    log_model: LogModel = False,
    table_every: int = 20,
    table_rollouts: int = 4,
    table_tokens: int = 1000,
) -> RunLogger:
    """Lightning's logger for W&B, with rollouts and files.

    Args:
        project: where the run belongs on W&B.
        entity: whose project; None is the user's own.
        save_dir: where the run's files go.
        name: of the run.
        group: runs that belong together.
        tags: of the run.
        mode: "auto" is online for who is logged in and offline otherwise; `wandb sync` uploads an offline run.
        resume: as of the run; unless it is None, the W&B run that `save_dir` began goes on, if there is one.
        log_model: true keeps the trained model as an artifact, "all" each checkpoint as well.
        table_every: as `TableSettings` has it.
        table_rollouts: likewise; 0 leaves the table out.
        table_tokens: likewise.

    Raises:
        ValueError: for a tag that W&B would refuse, a table that can't be, or as `logged_in`.
    """
    for option, value, least in (
        ("table_every", table_every, 1),
        ("table_rollouts", table_rollouts, 0),
        ("table_tokens", table_tokens, 1),
    ):
        if value < least:
            raise ValueError(f"logger.wandb.{option} must be at least {least}, got {value}")
    for tag in tags or []:
        if not 0 < len(tag) <= MAX_TAG:
            raise ValueError(f"logger.wandb.tags: {tag!r} has {len(tag)} characters, and W&B takes 1 to {MAX_TAG}")
    from atrl.wandb_run import RunLogger

    os.environ.setdefault("WANDB_SILENT", "true")
    offline = mode == "offline" or (mode == "auto" and not logged_in())
    return RunLogger(
        table=TableSettings(table_every, table_rollouts, table_tokens),
        log_model=log_model,
        project=project,
        entity=entity,
        save_dir=save_dir,
        name=name,
        group=group,
        tags=tags,
        offline=offline,
        id=_run_id(Path(save_dir), goes_on=resume is not None),
    )


def tensorboard_logger(*, save_dir: str) -> TensorBoardLogger:
    """Lightning's logger for TensorBoard, into `save_dir`/tensorboard.

    Raises:
        ValueError: without the package tensorboard.
    """
    if find_spec("tensorboard") is None:
        raise ValueError("logger=tensorboard needs the package tensorboard: pip install 'atrl[tensorboard]'")
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir, name="tensorboard", version="", default_hp_metric=False)


def _run_id(folder: Path, *, goes_on: bool) -> str:
    """The id of the W&B run that `folder` belongs to, which is kept in it."""
    file = folder / "wandb_run_id"
    if goes_on and file.is_file():
        return file.read_text(encoding="utf-8").strip()
    run_id = uuid4().hex[:8]
    if main_process() and folder.is_dir():
        file.write_text(f"{run_id}\n", encoding="utf-8")
    return run_id


def logged_in() -> bool:
    """Whether W&B has credentials for this user; never asks, and never goes to the network to try them.

    Raises:
        ValueError: for credentials that can't be any.
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # else it asks the server for the name to greet
    import wandb

    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        words = " ".join(str(error).split())
        raise ValueError(f"W&B: {words}: run `wandb login` again, or set logger.wandb.mode=offline") from None


def log_once(trainer: Trainer, metrics: dict[str, float], *, step: int | None = None) -> None:
    """Log `metrics` at `step`, or else this training step; `LightningModule.log` would repeat them at every later one.

    What is measured of a policy belongs to as many steps as it has had. So do rollouts, whose metrics are logged at the
    steps that came before theirs: both are the same policy's at the same place.
    """
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=step_now(trainer) if step is None else step)


def forget_last_step(trainer: Trainer) -> None:
    """Drop what the training step before logged: where this one logs nothing by a name, Lightning would repeat it."""
    results = trainer.fit_loop.epoch_loop._results
    for key in [key for key, logged in results.items() if not logged.meta.on_epoch]:
        del results[key]
    trainer.callback_metrics.clear()
    trainer.logged_metrics.clear()


def step_now(trainer: Trainer) -> int:
    """The training step that is going on, from 0; of the whole run, though Lightning counts a resumed part by itself.

    Before the first batch the loop stands at -1, which no chart has a place for.
    """
    module = cast("PromptModule", trainer.lightning_module)
    return max(0, module.first_step + int(trainer.fit_loop.total_batch_idx))
