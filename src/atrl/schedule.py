"""The optimizer of the RL stage and its learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning import LightningModule
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from atrl.sections import OptimizerSettings


def optimizer_and_schedule(
    parameters: Iterable[nn.Parameter], settings: OptimizerSettings, updates: int
) -> dict[str, Any]:
    """AdamW on the trainable ones of `parameters`, with the learning rate of `learning_rate_factor`, for Lightning."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    first, second = settings.betas  # a list, where a config has them
    optimizer = torch.optim.AdamW(
        trainable, lr=settings.learning_rate, betas=(first, second), weight_decay=settings.weight_decay
    )
    schedule = LambdaLR(optimizer, lambda update: learning_rate_factor(update, settings, updates))
    return {"optimizer": optimizer, "lr_scheduler": schedule}


def optimizer_of(module: LightningModule) -> Optimizer:
    """The one optimizer of a module in training, as torch knows it."""
    optimizer = module.optimizers(use_pl_optimizer=False)
    assert isinstance(optimizer, Optimizer), f"a policy has one optimizer, got {type(optimizer).__name__}"
    return optimizer


def schedule_of(module: LightningModule) -> LambdaLR:
    """The schedule of that optimizer's learning rate."""
    schedule = module.lr_schedulers()
    assert isinstance(schedule, LambdaLR), f"a policy has one schedule, a LambdaLR, got {type(schedule).__name__}"
    return schedule


def learning_rate_factor(update: int, settings: OptimizerSettings, updates: int) -> float:
    """The learning rate over its peak at an update: up linearly to 1, then down linearly to `decay_to` at the last."""
    if update < settings.warmup_steps:
        return (update + 1) / settings.warmup_steps
    progress = min(1.0, (update - settings.warmup_steps) / max(1, updates - 1 - settings.warmup_steps))
    return 1 - (1 - settings.decay_to) * progress


def set_progress(schedule: LambdaLR, update: int) -> None:
    """Make `update`, counted from 0, the next one: at the rate that these settings give it, whatever came before."""
    schedule.last_epoch = update
    rates = [base * factor(update) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
