"""When sampler and trainer disagree, and that a run is told."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from atrl.callbacks.rollout import RolloutCallback, disagreement, held_bytes
from atrl.metrics import SamplerGap
from atrl.prompt_module import Sharding
from atrl.rollout.settings import RolloutSettings


@pytest.mark.parametrize(
    ("largest", "kl", "exact", "found"),
    [
        (9e-4, 0.5, True, None),  # in float32 the largest difference decides
        (2e-3, 0.0, True, r"2.0e-03 nats at a token \(up to 0.001 is rounding\)"),
        (math.nan, 0.0, True, "nan nats at a token"),
        (3.0, 9e-3, False, None),  # in 16 bits single tokens are far off, the mean is not
        (3.0, 2e-2, False, r"a divergence of 2.0e-02 nats a token \(up to 0.01 is rounding\)"),
        (0.0, math.nan, False, "a divergence of nan"),
    ],
)
def test_what_rounding_explains(largest: float, kl: float, exact: bool, found: str | None) -> None:
    said = disagreement(SamplerGap(mean=0.0, largest=largest, kl=kl), exact=exact)
    if found is None:
        assert said is None
    else:
        assert re.search(found, said) and "try rollout=transformers" in said


class Sampler:
    name = "some"

    def __init__(self, dtype: str = "float32") -> None:
        self.dtype = dtype


def callback(tmp_path, every: int, dtype: str = "float32") -> RolloutCallback:
    settings = RolloutSettings(sampler=Sampler(dtype), check_sync_every=every)
    return RolloutCallback(settings, settings.sampling, handle=None, folder=tmp_path, rescue=str)


def steps_warned_at(
    bound: RolloutCallback, caplog, *, precision: str = "32-true", dtype=torch.float32, computing=None
) -> list[int]:
    """Of six steps whose rollouts are 0.01 nats off: k3 of that is 5e-5."""
    experience = SimpleNamespace(response_mask=torch.tensor([[True]]), sampler_logprobs=torch.tensor([[-1.0]]))
    step = SimpleNamespace(experience=experience, logprobs=torch.tensor([[-1.01]]))
    policy, sharding = torch.nn.Linear(1, 1).to(dtype), Sharding(compute_dtype=computing)
    warned = []
    for index in range(6):
        caplog.clear()
        module = SimpleNamespace(last_step=step, steps_done=index + 1, policy=policy, sharding=sharding)
        bound.on_train_batch_end(SimpleNamespace(precision=precision), module, None, None, index)
        warned += [index + 1] * ("nats at a token" in caplog.text)
    return warned


@pytest.mark.parametrize(("every", "expected"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (3, [1, 3, 6]), (20, [1])])
def test_the_first_step_and_every_so_many_are_looked_at(tmp_path, caplog, every: int, expected: list[int]) -> None:
    assert steps_warned_at(callback(tmp_path, every), caplog) == expected


@pytest.mark.parametrize(
    "rounded",
    [{"dtype": torch.bfloat16}, {"precision": "bf16-mixed"}, {"engine": "bfloat16"}, {"computing": torch.bfloat16}],
    ids=lambda value: str(value),
)
def test_sixteen_bits_on_either_side_are_no_alarm(tmp_path, caplog, rounded: dict) -> None:
    bound = callback(tmp_path, 1, rounded.pop("engine", "float32"))
    assert steps_warned_at(bound, caplog, **rounded) == []


@pytest.mark.parametrize(
    ("strategy", "offload", "expected"),
    [("whole", False, 120), (ModelParallelStrategy(), False, 60), (ModelParallelStrategy(), True, 0)],
)
def test_each_rank_holds_its_part_of_a_divided_policy(strategy, offload: bool, expected: int) -> None:
    """Ten float32 weights and two moments each: 3 · 40 bytes, halved among two ranks."""
    policy = torch.nn.Linear(10, 1, bias=False)
    module = SimpleNamespace(policy=policy, sharding=Sharding(offload=offload))
    assert held_bytes(SimpleNamespace(strategy=strategy, world_size=2), module) == expected
