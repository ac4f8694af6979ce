"""What the settings of the trainer mean to Lightning."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from atrl.sections import TrainerSettings
from atrl.sharding import Sharding
from atrl.strategy import ReplicatedStrategy, precision_of, sharding_of, strategy_of


@pytest.mark.parametrize(
    ("strategy", "processes", "kind"),
    [
        ("auto", 1, str),
        ("ddp", 1, str),
        ("auto", 2, ReplicatedStrategy),
        ("ddp", 2, ReplicatedStrategy),
        ("fsdp", 1, ModelParallelStrategy),
        ("fsdp", 2, ModelParallelStrategy),
    ],
)
def test_a_policy_is_divided_only_where_that_is_asked_for(strategy, processes, kind):
    assert type(strategy_of(TrainerSettings(strategy=strategy), processes)) is kind


def test_ranks_divide_the_data_and_not_single_matrices():
    strategy = strategy_of(TrainerSettings(strategy="fsdp"), 6)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (6, 1)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_bfloat16_is_lightnings_or_the_divided_models_own(strategy):
    settings = TrainerSettings(strategy=strategy, precision="bf16-mixed")
    assert precision_of(settings) == ("32-true" if strategy == "fsdp" else "bf16-mixed")
    assert sharding_of(settings) == Sharding(compute_dtype=torch.bfloat16)
    full = TrainerSettings(strategy="fsdp", cpu_offload=True)
    assert precision_of(full) == "32-true" and sharding_of(full) == Sharding(offload=True)


def test_only_a_divided_policy_is_offloaded():
    with pytest.raises(ValueError, match=r"trainer\.cpu_offload needs trainer\.strategy=fsdp, got ddp"):
        TrainerSettings(strategy="ddp", cpu_offload=True)
