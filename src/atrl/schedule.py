"""The optimizer of the RL stage and its learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from atrl.sections import OptimizerSettings


def optimizer_and_schedule(
    parameters: Iterable[nn.Parameter], settings: OptimizerSettings, updates: int
) -> dict[str, Any]:
    """AdamW on the trainable ones of `parameters`, with the learning rate of `learning_rate_factor`, for Lightning."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=settings.learning_rate, betas=tuple(settings.betas), weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: learning_rate_factor(update, settings, updates)
    )
    return {"optimizer": optimizer, "lr_scheduler": schedule}


def learning_rate_factor(update: int, settings: OptimizerSettings, updates: int) -> float:
    """The learning rate over its peak at an update: up linearly to 1, then down linearly to `decay_to` at the last."""
    if update < settings.warmup_steps:
        return (update + 1) / settings.warmup_steps
    progress = min(1.0, (update - settings.warmup_steps) / max(1, updates - 1 - settings.warmup_steps))
    return 1 - (1 - settings.decay_to) * progress
