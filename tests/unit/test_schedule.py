"""The learning rate of a run that goes on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from atrl.schedule import optimizer_and_schedule, set_progress
from atrl.sections import OptimizerSettings


def made(updates: int, **settings):
    parts = optimizer_and_schedule([nn.Parameter(torch.ones(2))], OptimizerSettings(**settings), updates)
    return parts["optimizer"], parts["lr_scheduler"]


def rates(optimizer, schedule, count: int) -> list[float]:
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_it_goes_on_to_the_same_bits():
    settings = {"learning_rate": 3e-4, "warmup_steps": 3, "decay_to": 0.1}
    whole = rates(*made(12, **settings), 12)
    for start in range(12):
        optimizer, schedule = made(12, **settings)
        set_progress(schedule, start)
        assert rates(optimizer, schedule, 12 - start) == whole[start:]
        assert schedule.get_last_lr() == [optimizer.param_groups[0]["lr"]]


def test_another_rate_and_another_length_count_from_the_next_update_on():
    """By hand, without warm-up and down to 0: after 2 of 5 updates 1 - 2/4 is left of the rate, and then 1/4."""
    optimizer, schedule = made(5, learning_rate=8.0, warmup_steps=0, decay_to=0.0)
    set_progress(schedule, 2)
    assert rates(optimizer, schedule, 3) == pytest.approx([4.0, 2.0, 0.0])
