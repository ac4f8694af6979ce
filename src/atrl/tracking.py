"""Weights & Biases; the only file that imports it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from atrl.launch import main_process

if TYPE_CHECKING:
    from lightning import Trainer
    from lightning.pytorch.loggers import WandbLogger


def wandb_logger(
    *,
    project: str = "atrl",
    save_dir: str = ".",
    name: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    mode: Literal["auto", "online", "offline"] = "auto",
    resume: str | None = None,
) -> WandbLogger:
    """Lightning's logger for W&B.

    Args:
        project: the project's name on W&B.
        save_dir: where the run's files go.
        name: of the run.
        group: runs that belong together.
        tags: of the run.
        mode: "auto" is online for who is logged in and offline otherwise; `wandb sync` uploads an offline run.
        resume: as of the run; unless it is None, the W&B run that `save_dir` began goes on, if there is one.
    """
    from lightning.pytorch.loggers import WandbLogger

    offline = mode == "offline" or (mode == "auto" and not logged_in())
    os.environ.setdefault("WANDB_SILENT", "true")
    # `mode` is given as well: the variable that Lightning sets for `offline` comes too late for W&B to see it.
    return WandbLogger(
        project=project,
        save_dir=save_dir,
        name=name,
        group=group,
        tags=tags,
        offline=offline,
        mode="offline" if offline else "online",
        log_model=False,
        id=_run_id(Path(save_dir), goes_on=resume is not None),
        resume="allow",
    )


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
    """Whether W&B has credentials for this user; never asks, and never goes to the network."""
    import wandb

    return wandb.login(prompt=False)


def log_once(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Log `metrics` for this training step; `LightningModule.log` would repeat them at every later one."""
    # Before the first batch the loop stands at -1, which no chart has a place for.
    # Lightning counts from where this part of the run started.
    step = max(0, trainer.lightning_module.first_step + trainer.fit_loop.total_batch_idx)
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=step)
