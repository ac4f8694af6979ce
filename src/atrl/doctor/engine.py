"""The engine on the tiny model: does it start, do its log-probs agree with the trainer's, do new weights reach it?

Run as a program of its own (``python -m atrl.doctor.engine``), because an engine can hang or crash; it prints its
findings as JSON in its last line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrl.doctor.finding import Finding, ok, problem

if TYPE_CHECKING:
    from atrl.models.load import LoadedModel
    from atrl.types import Prompt

LIMIT_S = 300
PROBLEMS, SAMPLES = 4, 2
CHANGE = 0.05
"""How far, relative to itself, each weight is moved for the sync."""
WITHOUT = "run with rollout=transformers, which needs no engine"


def engine(limit_s: float = LIMIT_S) -> list[Finding]:
    """What the program below finds; a crash, or more than `limit_s` seconds, is a problem."""
    command = [sys.executable, "-m", "atrl.doctor.engine"]
    with tempfile.TemporaryFile("w+") as said:
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=said, text=True, timeout=limit_s)
        except subprocess.TimeoutExpired:
            return [problem("engine", f"it did not answer within {limit_s:.0f} s", WITHOUT)]
        said.seek(0)
        last = (said.read().strip().splitlines() or ["it said nothing"])[-1]
    try:
        return [Finding(**finding) for finding in json.loads(done.stdout.splitlines()[-1])]
    except (IndexError, ValueError, TypeError):
        return [problem("engine", f"its process ended with code {done.returncode}: {last}", WITHOUT)]


def look(sampler: Any) -> Iterator[Finding]:
    """Start `sampler` on the tiny model, compare, change the weights, compare again."""
    from atrl.models.load import PretrainedModel
    from atrl.rollout.settings import RolloutSettings

    settings = RolloutSettings(sampler=sampler, max_response_tokens=32)
    with tempfile.TemporaryDirectory() as folder:
        loaded = PretrainedModel(path="tiny").load(Path(folder))
        prompts = _prompts(settings, loaded)
        try:
            sampler.start(settings.handle(loaded, [prompt.problem for prompt in prompts]))
        except ValueError as error:
            yield problem("engine", str(error), WITHOUT)
            return
        try:
            yield ok("engine", f"{sampler.name} starts and answers")
            yield from agreement(sampler, loaded, prompts)
        finally:
            sampler.close()


def agreement(sampler: Any, loaded: LoadedModel, prompts: list[Prompt]) -> Iterator[Finding]:
    """Log-probs of a started `sampler` against the trainer's: with the weights it began with, and with new ones."""
    import torch

    from atrl.callbacks.rollout import LARGEST_GAP
    from atrl.weight_sync import named_parameters

    yield _verdict("log-probs", largest_gap(sampler, loaded, prompts), LARGEST_GAP, "as it started")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.mul_(1 + CHANGE * noise)
    sampler.update_weights(named_parameters(loaded.model), version=1)
    yield _verdict("weight sync", largest_gap(sampler, loaded, prompts), LARGEST_GAP, "after every weight changed")


def largest_gap(sampler: Any, loaded: LoadedModel, prompts: list[Prompt]) -> float:
    """The largest difference of a sampled token's log-prob, in nats, between `sampler` and the trainer."""
    import torch

    from atrl.data.templates import banned_token_ids, padding_id
    from atrl.experience import build_experience
    from atrl.forward import ForwardPass
    from atrl.models.policy import evaluating
    from atrl.rollout.base import Sampling

    groups = sampler.generate(prompts, Sampling(group_size=SAMPLES, max_response_tokens=32), seed="doctor")
    banned = banned_token_ids(loaded.processor)
    batch = build_experience(groups, pad_id=padding_id(loaded.processor.tokenizer, banned), device=loaded.model.device)
    with torch.no_grad(), evaluating(loaded.model):
        logprobs, _ = ForwardPass(temperature=1.0, banned_ids=banned).logprobs(loaded.model, batch)
    return float((logprobs - batch.sampler_logprobs)[batch.response_mask].abs().max())


def _verdict(thing: str, gap: float, limit: float, when: str) -> Finding:
    says = f"sampler and trainer differ by {gap:.1e} nats at most {when}"
    if gap <= limit:  # NaN is a problem too
        return ok(thing, says)
    return problem(thing, f"{says}, and {limit:g} is rounding", f"{WITHOUT}, and install the vLLM of pyproject.toml")


def _prompts(settings: Any, loaded: LoadedModel) -> list[Prompt]:
    from atrl.data.geometry import GeometryProblems

    problems = GeometryProblems(train_size=PROBLEMS).load("train")
    return settings.prompt_builder(loaded, "").build_all(problems).prompts


def main() -> None:
    """Look at the vLLM engine and print the findings."""
    from atrl.quiet import quieten_libraries, set_environment

    set_environment()
    quieten_libraries()
    from atrl.rollout.vllm import VllmSampler

    findings = list(look(VllmSampler(max_num_seqs=16)))
    print(json.dumps([asdict(finding) for finding in findings]), flush=True)


if __name__ == "__main__":
    main()
