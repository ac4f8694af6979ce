"""A real `vllm serve`: a training run over it, and what is said when server and trainer don't fit together."""

from __future__ import annotations

import copy
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from atrl.data.geometry import GeometryProblems
from atrl.data.prompts import PromptBuilder
from atrl.data.templates import banned_token_ids
from atrl.models.load import LoadedModel, PretrainedModel
from atrl.rollout.base import ModelHandle, Sampling
from atrl.rollout.server import LOADING, VllmServerSampler
from atrl.rollout.weight_transfer import check_answers
from atrl.types import Prompt
from tests.integration.conftest import REPOSITORY, needs_vllm, running_server

pytestmark = needs_vllm

KEY = "correct horse battery staple"
SAMPLING = Sampling(group_size=2, max_response_tokens=8)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the bundled model, with a key."""
    with running_server("tiny", tmp_path_factory.mktemp("server") / "log", key=KEY) as found:
        VllmServerSampler(url=found, wait_seconds=240).server.wait_until_ready(240)
        yield found


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return PretrainedModel().load(Path())


@pytest.fixture(scope="module")
def prompts(loaded: LoadedModel) -> list[Prompt]:
    builder = PromptBuilder(processor=loaded.processor)
    return [builder.build(problem) for problem in GeometryProblems(train_size=2).load("train")]


@pytest.fixture(scope="module")
def handle(loaded: LoadedModel) -> ModelHandle:
    return ModelHandle(
        folder=loaded.folder, model=loaded.model.eval(), tokenizer=loaded.processor.tokenizer,
        banned_ids=banned_token_ids(loaded.processor), max_prompt_tokens=256, max_response_tokens=64, max_images=1,
    )  # fmt: skip


@pytest.fixture
def sampler(url: str, handle: ModelHandle) -> Iterator[VllmServerSampler]:
    started = VllmServerSampler(url=url, retries=0)
    started.start(handle)
    yield started
    started.close()


def refusal(call, *arguments, **options) -> str:
    """The one line that `call` refuses with."""
    with pytest.raises(ValueError) as error:
        call(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message and KEY not in message
    return message


def test_a_training_run(url: str, tmp_path: Path) -> None:
    """Two steps as a user runs them: the server samples with each step's weights, and nothing is left behind."""
    weights = tmp_path / "weights"
    weights.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, REPOSITORY / "train.py", "rollout=server", f"rollout.sampler.url={url}"),
            *(f"rollout.sampler.weights_folder='{weights}'", "optimizer.learning_rate=1e-3", "hydra.run.dir=run"),
            *("optimizer.warmup_steps=1", "rollout.prompts_per_step=2", "rollout.group_size=4", "logger=csv"),
            *("trainer.max_steps=2", "trainer.evaluate_samples=4", "trainer.grounding_samples=0"),
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rollout"]["engine"] == "server"
    with (tmp_path / "run" / "metrics.csv").open() as file:
        gaps = [float(row["rollout/logprob_gap_max"]) for row in csv.DictReader(file) if row["rollout/logprob_gap_max"]]
    assert len(gaps) == 2 and max(gaps) < 1e-3
    assert list(weights.iterdir()) == []


def test_a_wrong_key_is_refused_and_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "guessed-key")
    message = refusal(VllmServerSampler(url=url, api_key_variable="OTHER_KEY").check, "qwen2_5_vl")
    assert message.startswith(f"rollout=server: {url}/inference/v1/generate refused: HTTP 401")
    assert message.endswith("set the environment variable OTHER_KEY to the server's key") and "guessed" not in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_prompt_tokens": 257}, r"was started for max-model-len 320, and 321 are needed: .* --max-model-len 321`"),
        ({"max_images": 2}, r"was started for max-images 1, and 2 are needed: .* --max-images 2`"),
    ],
)
def test_a_server_that_is_too_small_is_refused(url: str, handle: ModelHandle, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VllmServerSampler(url=url).start(replace(handle, **change))


def test_a_server_that_was_not_started_for_nccl_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"was not started for rollout.sampler.weight_transfer=nccl: start it with"):
        VllmServerSampler(url=url, weight_transfer="nccl").check("qwen2_5_vl")


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_server_of_another_model_is_refused(url: str, handle: ModelHandle, name: str) -> None:
    config = copy.deepcopy(handle.model.config)
    right = getattr(config.text_config, name)
    setattr(config.text_config, name, right + 1)
    message = refusal(VllmServerSampler(url=url).start, replace(handle, model=SimpleNamespace(config=config)))
    assert f"serves another model than {handle.folder}: its {name} is {right} and not {right + 1}" in message


def test_another_run_on_the_same_server_is_noticed_by_both(
    url: str, sampler: VllmServerSampler, handle: ModelHandle, prompts
) -> None:
    assert [group.policy_version for group in sampler.generate(prompts, SAMPLING, seed="0")] == [0, 0]
    other = VllmServerSampler(url=url)
    other.start(handle)
    assert "does another run use the server" in refusal(sampler.generate, prompts, SAMPLING, seed="0")
    assert "does another run use the server" in refusal(
        sampler.update_weights, handle.model.named_parameters(), version=1
    )
    assert len(other.generate(prompts, SAMPLING, seed="0")) == 2
    other.server.post("/update_weight_version", {"new_version": "default"})  # as after a restart
    assert "was it started again?" in refusal(other.generate, prompts, SAMPLING, seed="0")
    other.close()


def _with(handle: ModelHandle, change) -> list[tuple[str, torch.Tensor]]:
    parameters = dict(handle.model.named_parameters())
    change(parameters)
    return list(parameters.items())


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (
            lambda p: p.pop("model.visual.merger.mlp.0.weight"),
            r"1 of its parameters got no .*, the first is visual",
        ),
        (lambda p: p.update({"model.language_model.norm.weight": torch.ones(3)}), r"Error: "),
        (lambda p: p.update({"model.language_model.nothing.weight": torch.ones(3)}), r"Error: .*nothing"),
        (dict.clear, r"it sees no \*\.safetensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_never_sampled_from(
    sampler: VllmServerSampler, handle: ModelHandle, prompts, change, cause: str
) -> None:
    with pytest.raises(ValueError, match=rf"did not take the new weights \(.*{cause}"):
        sampler.update_weights(_with(handle, change), version=1)
    assert f"has weights of version '{LOADING}'" in refusal(sampler.generate, prompts, SAMPLING, seed="0")


def test_a_folder_that_the_server_does_not_see_is_named(sampler: VllmServerSampler) -> None:
    call = {"method": "atrl_load_weights", "kwargs": {"folder": "/only/the/trainer"}}
    answers = sampler.server.post("/collective_rpc", call)
    message = refusal(check_answers, answers, sampler.server, Path("/only/the/trainer"))
    assert "see /only/the/trainer under the same path; else set rollout.sampler.weights_folder" in message


def test_a_server_without_the_extension_says_so_with_500(sampler: VllmServerSampler) -> None:
    """What `VllmServerSampler` takes for a missing extension; and the server lives on."""
    assert "HTTP 500" in refusal(sampler.server.post, "/collective_rpc", {"method": "atrl_no_such_method"})
    sampler.check("qwen2_5_vl")


def test_a_prompt_that_the_server_expands_differently_is_refused(sampler: VllmServerSampler, prompts) -> None:
    ids = prompts[1].token_ids
    changed = replace(prompts[1], token_ids=[*ids[:-1], ids[-1] + 1])
    message = refusal(sampler.generate, [prompts[0], changed], SAMPLING, seed="0")
    assert message.startswith(f"problem {changed.problem.id}: {sampler.server.url} expands the prompt to {len(ids)}")
    assert f"differ from token {len(ids) - 1} on" in message


def test_a_request_that_the_server_refuses_is_passed_on(sampler: VllmServerSampler, prompts) -> None:
    endless = replace(prompts[0], engine_token_ids=prompts[0].engine_token_ids * 30)
    message = refusal(sampler.generate, [endless], SAMPLING, seed="0")
    assert f"{sampler.server.url}/inference/v1/generate refused: HTTP 400" in message
