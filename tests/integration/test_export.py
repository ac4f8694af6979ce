"""A policy that two ranks divided, exported by the command, in vLLM and in transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atrl.checkpoint import write_checkpoint
from atrl.data.geometry import GeometryProblems
from atrl.data.prompts import PromptBuilder
from atrl.data.templates import banned_token_ids
from atrl.models.load import PretrainedModel
from atrl.rollout.base import ModelHandle, Sampling
from atrl.rollout.transformers import TransformersSampler
from atrl.rollout.vllm import VllmSampler
from tests.integration.conftest import REPOSITORY, needs_vllm
from tests.unit.ranks import run_ranks


def moved_by_two_ranks(run: Path) -> None:
    """A checkpoint of the model that comes with atrl, a step away from it."""
    from torch.distributed.device_mesh import init_device_mesh

    from atrl.sharding import Sharding, shard

    policy = PretrainedModel().load(run).model
    shard(policy, init_device_mesh("cpu", (torch.distributed.get_world_size(),)), Sharding())
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    sum(parameter.sum() for parameter in policy.parameters()).backward()
    optimizer.step()
    write_checkpoint(run / "checkpoints", {"step": 1, "config": {"model": {"path": "tiny"}}}, policy, optimizer)


def run_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, REPOSITORY / "export.py", *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder; nothing else is left of the command."""
    work = tmp_path_factory.mktemp("export")
    run_ranks(moved_by_two_ranks, work / "run", seconds=300)
    done = run_command(work, "checkpoint=run", "path=out")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "written to out\n"
    assert {entry.name for entry in work.iterdir()} == {"run", "out"}
    return work / "out"


def greedy(sampler, handle: ModelHandle, prompts: list) -> list[list[int]]:
    sampler.start(handle)
    try:
        groups = sampler.generate(prompts, Sampling(group_size=1, temperature=0, max_response_tokens=40), seed="0")
    finally:
        sampler.close()
    return [group.rollouts[0].token_ids for group in groups]


@needs_vllm
def test_vllm_starts_with_it_and_says_what_transformers_says(exported: Path, tmp_path: Path) -> None:
    """The engine is given another model's weights to hold, so that its own can only be those of the folder."""
    before, after = PretrainedModel().load(tmp_path), PretrainedModel(path=str(exported)).load(tmp_path)
    builder = PromptBuilder(processor=after.processor)
    prompts = [builder.build(problem) for problem in GeometryProblems().load("test")[:6]]

    def handle(model) -> ModelHandle:
        return ModelHandle(
            folder=exported, model=model, tokenizer=after.processor.tokenizer,
            banned_ids=banned_token_ids(after.processor), max_prompt_tokens=128, max_response_tokens=40, max_images=1,
        )  # fmt: skip

    expected = greedy(TransformersSampler(), handle(after.model.eval()), prompts)
    assert expected != greedy(TransformersSampler(), handle(before.model.eval()), prompts)
    assert greedy(VllmSampler(max_num_seqs=8, cpu_cache_gib=0.25), handle(before.model), prompts) == expected


def test_mistakes_on_the_command_line_are_lines(exported: Path) -> None:
    work = exported.parent
    for arguments, line in (
        (("checkpoint=run", "path=out"), "error: path=out is not empty: name another, or replace what is in it with"),
        (("checkpoint=rum", "path=new"), "error: checkpoint=rum: nothing to export there, did you mean 'run'? name"),
        (("chekpoint=run", "path=new"), "error: no key 'chekpoint', did you mean 'checkpoint'?"),
        (("checkpoint=run",), "error: path is not set: add path=VALUE to the command line"),
    ):
        done = run_command(work, *arguments)
        assert done.returncode == 2 and done.stderr.startswith(line), done.stderr
        assert done.stderr.count("\n") == 1
    assert {entry.name for entry in work.iterdir()} == {"run", "out"}
