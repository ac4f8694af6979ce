"""What the settings of the trainer mean to Lightning."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from atrl.prompt_module import PromptModule
from atrl.sections import TrainerSettings
from atrl.sharding import Sharding
from atrl.strategy import ReplicatedStrategy, ShardedStrategy, precision_of, sharding_of, strategy_of


@pytest.mark.parametrize(
    ("strategy", "processes", "kind"),
    [
        ("auto", 1, str),
        ("ddp", 1, str),
        ("auto", 2, ReplicatedStrategy),
        ("ddp", 2, ReplicatedStrategy),
        ("fsdp", 1, ShardedStrategy),
        ("fsdp", 2, ShardedStrategy),
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


@pytest.mark.parametrize(
    ("offload", "gpu", "backend"),
    [(True, True, "cpu:gloo,cuda:nccl"), (True, False, None), (False, True, None)],
)
def test_parts_in_host_memory_are_put_together_by_gloo(monkeypatch, offload, gpu, backend):
    """NCCL has no collectives for them; everything else stays Lightning's choice."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    strategy = strategy_of(TrainerSettings(strategy="fsdp", cpu_offload=offload), 2)
    assert isinstance(strategy, ModelParallelStrategy) and strategy.process_group_backend == backend


@pytest.mark.parametrize(("offload", "device"), [(True, "cpu"), (False, "meta")])
def test_parameters_that_wait_in_host_memory_stay_there(monkeypatch, offload, device):
    """FSDP2 refuses to run with offloaded parameters on a device; buffers must be there. "meta" stands for a GPU."""
    strategy = ShardedStrategy(1, offload=offload)
    monkeypatch.setattr(ShardedStrategy, "root_device", torch.device("meta"))
    strategy._model = nn.BatchNorm1d(3)
    strategy.model_to_device()
    assert {parameter.device.type for parameter in strategy.model.parameters()} == {device}
    assert {buffer.device.type for buffer in strategy.model.buffers()} == {"meta"}


def test_batches_are_built_where_the_trainer_computes():
    """Also where the parameters are elsewhere. Without a trainer that is where the parameters are."""
    module = PromptModule()
    assert module.device == torch.device("cpu")
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    assert module.device == torch.device("meta")


def test_only_a_divided_policy_is_offloaded():
    with pytest.raises(ValueError, match=r"trainer\.cpu_offload needs trainer\.strategy=fsdp, got ddp"):
        TrainerSettings(strategy="ddp", cpu_offload=True)
