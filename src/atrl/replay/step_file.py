"""What a step must leave to be computed again, and to be compared with: one safetensors file in the run's `steps/`.

About 20 bytes a response token and 25 a response.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from atrl.types import KeptTokens, Rollout

if TYPE_CHECKING:
    from atrl.step import StepRecord

FOLDER = "steps"
METRICS = ("loss/policy", "loss/gradient_norm")

DRAWN = ("lengths", "finished", "rewards", "token_ids", "sampler_logprobs")
"""Of every rollout that was drawn, those that dynamic sampling left out at the end."""
TRAINED = ("advantages", "weights", "logprobs", "losses")
"""Of those that were trained on."""


@dataclass(frozen=True, slots=True, eq=False)
class RecordedStep:
    """One step, or one rank's share of it."""

    prompts: list[tuple[str, int]]
    """The key of each prompt that was drawn, and how many responses it has; those left out come last."""
    trained: int
    """How many of these prompts were trained on."""
    tensors: dict[str, Tensor]
    """[rollout] lengths, finished, rewards, advantages; [Σ response], one rollout after the other: token_ids,
    sampler_logprobs, and of the trained ones weights, logprobs, losses. Of a truncated sampler also kept_counts [Σ
    response] and kept_ids [Σ kept]."""
    metrics: dict[str, float]
    """Of the global batch."""

    @classmethod
    def of(cls, step: StepRecord) -> RecordedStep:
        """What `step` has to leave."""
        groups = step.groups + [group for group, _ in step.discarded]
        rewards = step.rewards + [verdicts for _, verdicts in step.discarded]
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        mask = step.experience.response_mask
        weights = mask.float() if step.credit is None else step.credit.weights
        if step.credit is not None and step.credit.trajectory_scale is not None:
            weights = weights * step.credit.trajectory_scale[:, None]
        per_token = {"weights": weights, "logprobs": step.logprobs, "losses": step.losses}
        tensors = {
            "lengths": torch.tensor([len(rollout.token_ids) for rollout in rollouts], dtype=torch.int32),
            "finished": torch.tensor([rollout.finished for rollout in rollouts]),
            "rewards": torch.tensor([v.total for verdicts in rewards for v in verdicts], dtype=torch.float64),
            "token_ids": torch.tensor([t for rollout in rollouts for t in rollout.token_ids], dtype=torch.int32),
            "sampler_logprobs": torch.tensor([p for rollout in rollouts for p in rollout.logprobs]),
            "advantages": step.advantages.flatten().cpu(),
            **{name: values[mask].float().cpu() for name, values in per_token.items()},
        }
        if rollouts[0].kept is not None:
            tensors["kept_counts"] = torch.cat([rollout.kept.counts for rollout in rollouts])
            tensors["kept_ids"] = torch.cat([rollout.kept.ids for rollout in rollouts])
        prompts = [(group.prompt.key, len(group.rollouts)) for group in groups]
        metrics = {name: step.metrics[name] for name in METRICS}
        return cls(prompts, len(step.groups), tensors, metrics)

    @classmethod
    def joined(cls, shares: Sequence[RecordedStep]) -> RecordedStep:
        """The shares of all ranks, in order, as one: what they trained on, and after it what they left out."""
        trained, left_out = zip(*(share._parts() for share in shares), strict=True)
        parts = [*trained, *left_out]
        tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in shares[0].tensors}
        prompts = [prompt for part in parts for prompt in part.prompts]
        return cls(prompts, sum(share.trained for share in shares), tensors, shares[0].metrics)

    def _parts(self) -> tuple[RecordedStep, RecordedStep]:
        """What was trained on, and what was left out, as steps of their own."""
        rollouts = sum(size for _, size in self.prompts[: self.trained])
        tokens = int(self.tensors["lengths"][:rollouts].sum())
        edges = dict.fromkeys(("lengths", "finished", "rewards"), rollouts)
        edges |= dict.fromkeys(("token_ids", "sampler_logprobs", "kept_counts"), tokens)
        if "kept_counts" in self.tensors:
            edges["kept_ids"] = int(self.tensors["kept_counts"][:tokens].sum())
        kept = {name: values[: edges.get(name)] for name, values in self.tensors.items()}
        rest = {name: values[edges.get(name, len(values)) :] for name, values in self.tensors.items()}
        return (
            RecordedStep(self.prompts[: self.trained], self.trained, kept, self.metrics),
            RecordedStep(self.prompts[self.trained :], 0, rest, self.metrics),
        )

    def rollouts(self) -> dict[str, list[Rollout]]:
        """By the key of their prompt."""
        found: dict[str, list[Rollout]] = {}
        edges = [0, *accumulate(self.tensors["lengths"].tolist())]
        rows = iter(zip(pairwise(edges), self.tensors["finished"].tolist(), strict=True))
        for key, size in self.prompts:
            found[key] = [self._rollout(*next(rows)) for _ in range(size)]
        return found

    def _rollout(self, edges: tuple[int, int], finished: bool) -> Rollout:
        tokens = slice(*edges)
        kept = None
        if "kept_counts" in self.tensors:
            counts = self.tensors["kept_counts"]
            first = int(counts[: tokens.start].sum())
            last = first + int(counts[tokens].sum())
            kept = KeptTokens(ids=self.tensors["kept_ids"][first:last], counts=counts[tokens])
        return Rollout(
            token_ids=self.tensors["token_ids"][tokens].tolist(),
            logprobs=self.tensors["sampler_logprobs"][tokens].tolist(),
            finished=finished,
            kept=kept,
        )

    def place(self, name: str, index: int) -> str:
        """Names what stands at `index` of a tensor: prompt, sample and, where there is one, token; from 0."""
        keys = [f"{key}, sample {sample}" for key, size in self.prompts for sample in range(size)]
        lengths = self.tensors["lengths"].tolist()
        if name in ("lengths", "finished", "rewards", "advantages"):
            return keys[index]
        if name == "kept_ids":
            index = int((self.tensors["kept_counts"].cumsum(0) <= index).sum())
        row = sum(edge <= index for edge in accumulate(lengths))
        return f"{keys[row]}, token {index - sum(lengths[:row])}"


def step_path(run: Path, step: int) -> Path:
    """The file of a step, which is counted from 1."""
    return run / FOLDER / f"{step:06d}.safetensors"


def write_step(run: Path, number: int, step: RecordedStep, facts: dict[str, Any]) -> Path:
    """Write the file of step `number`; `facts` are what else its bits depend on."""
    path = step_path(run, number)
    path.parent.mkdir(exist_ok=True)
    about = {"step": number, "prompts": step.prompts, "trained": step.trained, "metrics": step.metrics, **facts}
    save_file({name: tensor.contiguous() for name, tensor in step.tensors.items()}, path, {"atrl": json.dumps(about)})
    return path


def read_step(run: Path, number: int) -> tuple[RecordedStep, dict[str, Any]]:
    """The recorded step and the facts beside it.

    Raises:
        ValueError: in one line, if there is no such step or its file can't be read.
    """
    path = step_path(run, number)
    if not path.is_file():
        known = sorted(int(file.stem) for file in (run / FOLDER).glob("*.safetensors"))
        there = f"steps {known[0]} to {known[-1]} are" if known else "none is"
        raise ValueError(f"{run} has no record of step {number}: {there} there (trainer.record_steps writes them)")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["atrl"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        facts = {name: about[name] for name in ("threads", "processes")}
        step = RecordedStep([tuple(pair) for pair in about["prompts"]], about["trained"], tensors, about["metrics"])
        _check_sizes(step)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no record of a step ({error}): replay a run whose files are whole") from None
    return step, facts


def _check_sizes(step: RecordedStep) -> None:
    tensors, rollouts = step.tensors, sum(size for _, size in step.prompts)
    trained = sum(size for _, size in step.prompts[: step.trained])
    lengths = tensors["lengths"].tolist()
    tokens = sum(lengths)
    expected = {"lengths": rollouts, "finished": rollouts, "rewards": rollouts, "advantages": trained}
    expected |= dict.fromkeys(("token_ids", "sampler_logprobs"), tokens)
    expected |= dict.fromkeys(("weights", "logprobs", "losses"), sum(lengths[:trained]))
    for name, size in expected.items():
        if len(tensors[name]) != size:
            raise ValueError(f"{name} holds {len(tensors[name])} values and not {size}")
