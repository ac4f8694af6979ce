"""One vLLM engine shared by two processes of a run, each of which holds half of its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atrl.rollout.base import Sampling
from atrl.rollout.vllm import VllmSampler
from tests.integration.conftest import needs_vllm
from tests.unit.ranks import run_ranks

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from atrl.models import scratch

    return scratch.build(tmp_path_factory.mktemp("tiny"))


def engine_of(checkpoint: Path, **options):
    """A started sampler, the policy that it samples for, and a builder of prompts."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from atrl.data.prompts import PromptBuilder
    from tests.integration.test_samplers import _handle

    processor = AutoProcessor.from_pretrained(checkpoint)
    policy = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    sampler = VllmSampler(max_num_seqs=16, cpu_cache_gib=0.1, **options)
    sampler.start(_handle(checkpoint, processor, policy))
    return sampler, policy, PromptBuilder(processor=processor)


def own_prompts(builder, rank: int):
    """Two prompts of the first rank, three other ones of the second."""
    from atrl.data.geometry import GeometryProblems

    problems = GeometryProblems(train_size=5).load("train")
    return [builder.build(problem) for problem in (problems[:2], problems[2:])[rank]]


def sample_on_each_rank(checkpoint: Path) -> dict:
    from atrl.data.templates import banned_token_ids
    from atrl.weight_sync import named_parameters
    from tests.integration.test_samplers import worst_difference

    sampler, policy, builder = engine_of(checkpoint, tensor_parallel_size=2)
    prompts = own_prompts(builder, torch.distributed.get_rank())
    banned, sampling = banned_token_ids(builder.processor), Sampling(group_size=2, max_response_tokens=8)
    first = sampler.generate(prompts, sampling, seed="0/1")
    found = {"first": worst_difference(policy, first, banned)}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    sampler.update_weights(named_parameters(policy), version=1)
    groups = sampler.generate(prompts, sampling, seed="0/2")
    uneven = sampler.generate(prompts if torch.distributed.get_rank() else [], sampling, seed="0/2")
    nothing = sampler.generate([], sampling, seed="0/3")
    sampler.close()
    return found | {
        "after the sync": worst_difference(policy, groups, banned),
        "old weights": worst_difference(policy, first, banned),
        "ids": [group.prompt.problem.id for group in groups],
        "texts": [group.texts for group in groups],
        "uneven": [group.prompt.problem.id for group in uneven],
        "nothing": nothing,
        "expected": [prompt.problem.id for prompt in prompts],
        "group spared": torch.distributed.is_initialized(),
    }


@needs_vllm
def test_each_process_gets_its_own_prompts_responses(checkpoint: Path) -> None:
    found = run_ranks(sample_on_each_rank, checkpoint)
    for rank in found:
        assert rank["first"] < TOLERANCE and rank["after the sync"] < TOLERANCE < 0.02 < rank["old weights"]
        assert rank["ids"] == rank["expected"] and rank["group spared"]
        assert rank["nothing"] == []
    assert found[0]["uneven"] == [] and found[1]["uneven"] == found[1]["ids"]
    assert found[0]["ids"] != found[1]["ids"]


def test_an_engine_for_more_processes_than_there_are_is_refused_before_a_model_loads(tmp_path: Path) -> None:
    from atrl import pipeline
    from tests.integration.conftest import compose_config

    config = compose_config(tmp_path, "rollout.sampler.tensor_parallel_size=2")
    with pytest.raises(ValueError, match=r"rollout.sampler.tensor_parallel_size=2 must divide"):
        pipeline.instantiate_parts(config, tmp_path)
