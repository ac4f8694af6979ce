"""The parts of `step.py`: atrl's training run, TRL's beside it, and both on the same rollouts."""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from lightning import Callback
from step import LEARNING_RATE, MEMORY_STEPS, WARM_UP, speedup
from transformers import AutoModelForImageTextToText
from trl_peer import Turns, peer

from atrl import pipeline, stages
from atrl.callbacks.rollout import RolloutCallback
from atrl.data.loader import PromptLoader
from atrl.experience import build_experience
from atrl.forward import ForwardPass
from atrl.loss.aggregation import BatchTotals
from atrl.models.load import LoadedModel
from atrl.rewards.base import RewardPart, Verdict
from atrl.rewards.weighted import WeightedReward
from atrl.rollout.base import ModelHandle
from atrl.rollout.settings import RolloutSettings
from atrl.rollout.transformers import TransformersSampler, end_token_ids
from atrl.types import Problem, Prompt, RolloutGroup


def letter_share(texts: Sequence[str]) -> list[float]:
    """A reward that differs between any two responses, so that no group is without a signal."""
    return [text.count("e") / max(1, len(text)) for text in texts]


class LetterShare(RewardPart):
    """`letter_share` as a part of the reward."""

    name = "letters"
    is_answer = True

    def score(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict a text."""
        return [Verdict(value) for value in letter_share(texts)]


@dataclass(frozen=True, kw_only=True)
class EndlessRollouts(RolloutSettings):
    """No response ends before the limit: what ends one is never sampled."""

    def handle(self, loaded: LoadedModel, problems: Sequence[Problem]) -> ModelHandle:
        """With the ends of an answer among the banned tokens."""
        handle = super().handle(loaded, problems)
        return replace(handle, banned_ids=tuple(sorted({*handle.banned_ids, *end_token_ids(handle)})))


def parts_of(arguments: argparse.Namespace, folder: Path) -> pipeline.Parts:
    """The demo's run without credit, with the settings that TRL is given."""
    overrides = [
        f"rollout={arguments.rollout}", "logger=csv", f"logger.csv.save_dir='{folder}'", "credit=none",
        f"model.path={arguments.model}", f"rollout.prompts_per_step={arguments.prompts}",
        f"rollout.group_size={arguments.group_size}", f"rollout.max_response_tokens={arguments.tokens}",
        "rollout.check_sync_every=0", f"optimizer.micro_batch_size={arguments.micro_batch}",
        f"optimizer.learning_rate={LEARNING_RATE}", "optimizer.decay_to=1",
        f"trainer.threads={arguments.threads or 'null'}",
    ]  # fmt: skip
    conf = str(Path(__file__).resolve().parents[1] / "conf")
    with initialize_config_dir(conf, version_base="1.3"):
        parts = pipeline.instantiate_parts(compose("train", overrides=overrides), folder)
    reward = WeightedReward(parts={"letters": LetterShare(weight=1.0)})
    return replace(parts, rollout=EndlessRollouts(**vars(parts.rollout)), reward=reward)


class Timed(PromptLoader):
    """Notes when a batch was begun to be made: TRL makes its own inside the step."""

    began = 0.0

    def __iter__(self) -> Iterator[list[Prompt]]:
        batches = super().__iter__()
        for _ in range(len(self)):
            self.began = time.perf_counter()
            yield next(batches)


@dataclass
class Alternate(Callback):
    """Takes the time of each of atrl's steps, and has `other` take its own between them: A B, B A, A B, …"""

    loader: Timed
    other: Callable[[], float] | None
    seconds: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    tokens: set[int] = field(default_factory=set)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Behind the optimizer's step and the sync."""
        self.seconds.append(time.perf_counter() - self.loader.began)
        for name, value in pl_module.timer.lap().items():
            self.phases[name].append(value)
        self.tokens.add(int(pl_module.last_step.experience.response_mask.sum()))
        if self.other is not None and batch_idx % 2 == 0:
            self.others += [self.other(), self.other()]


def train(arguments: argparse.Namespace, steps: int, beside: Callable[..., Callable[[], float]] | None) -> Alternate:
    """`steps` steps of atrl, with those of what `beside` makes of parts, policy and the run's problems in between."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        parts = parts_of(arguments, folder)
        pipeline.prepare_process(parts)
        loaded = parts.model.load(folder / "model")
        builder = parts.rollout.prompt_builder(loaded, parts.model.instruction)
        problems = parts.source.load("train")
        options = {"batch_size": arguments.prompts, "steps": steps, "seed": 0}
        order = [prompt.problem for batch in PromptLoader(problems, builder, **options) for prompt in batch]
        loader = Timed(problems, builder, **options)
        watch = Alternate(loader, None if beside is None else beside(loaded, order))
        handle = parts.rollout.handle(loaded, [])
        sampler = RolloutCallback(parts.rollout, parts.rollout.sampling, handle, folder=folder, rescue=str)
        stages.fit(parts, stages.policy_module(parts, loaded), loader, [sampler, watch], enable_progress_bar=False)
    expected = {arguments.prompts * arguments.group_size * arguments.tokens}
    assert watch.tokens == expected, f"atrl generated {watch.tokens} tokens a step, expected {expected}"
    return watch


def trl_steps(arguments: argparse.Namespace, loaded: LoadedModel, problems: Sequence[Problem], steps: int) -> Turns:
    """TRL's trainer of a policy with the same weights, before its first step."""
    own = as_its_users_load_it(loaded)
    trainer, turns = peer(
        own, problems, letter_share, prompts=arguments.prompts, group_size=arguments.group_size,
        tokens=arguments.tokens, micro_batch=arguments.micro_batch, steps=steps, learning_rate=LEARNING_RATE,
    )  # fmt: skip
    turns.start(trainer.train)
    return turns


def as_its_users_load_it(loaded: LoadedModel) -> LoadedModel:
    """The same weights in transformers' own model, in which nothing is atrl's."""
    model = AutoModelForImageTextToText.from_pretrained(loaded.folder, dtype=torch.float32)
    return LoadedModel(model.train(), loaded.processor, loaded.folder)


def times(arguments: argparse.Namespace) -> dict[str, object]:
    """Seconds of steps that take turns."""
    steps = WARM_UP + arguments.rounds + arguments.rounds % 2
    sides: list[Turns] = []

    def beside(loaded: LoadedModel, problems: Sequence[Problem]) -> Callable[[], float]:
        sides.append(trl_steps(arguments, loaded, problems, steps))
        return sides[0].step

    watch = train(arguments, steps, beside)
    length = sides[0].logs.values["completions/mean_length"]
    assert length == arguments.tokens, f"TRL generated {length} tokens a response, expected {arguments.tokens}"
    atrl, trl = watch.seconds[WARM_UP:], watch.others[WARM_UP:]
    tokens = arguments.prompts * arguments.group_size * arguments.tokens
    return speedup(atrl, trl) | {
        "atrl_tokens_per_second": round(tokens / statistics.median(atrl)),
        "trl_tokens_per_second": round(tokens / statistics.median(trl)),
        "atrl_step_seconds": round(statistics.median(atrl), 4),
        "trl_step_seconds": round(statistics.median(trl), 4),
        "phases": {name: round(statistics.median(values[WARM_UP:]), 4) for name, values in watch.phases.items()},
    }


def memory_atrl(arguments: argparse.Namespace) -> dict[str, object]:
    """Peak of a process in which atrl alone trains."""
    train(arguments, MEMORY_STEPS, None)
    return {"memory_atrl_bytes": peak_bytes()}


def memory_trl(arguments: argparse.Namespace) -> dict[str, object]:
    """Peak of a process in which TRL alone trains."""
    with tempfile.TemporaryDirectory() as temporary:
        parts = parts_of(argparse.Namespace(**vars(arguments) | {"rollout": "transformers"}), Path(temporary))
        pipeline.prepare_process(parts)
        loaded = parts.model.load(Path(temporary) / "model")
        problems = [parts.source.load("train")[number] for number in range(MEMORY_STEPS * arguments.prompts)]
        turns = trl_steps(arguments, loaded, problems, MEMORY_STEPS)
        del loaded
        for _ in range(MEMORY_STEPS):
            turns.step()
    return {"memory_trl_bytes": peak_bytes()}


def peak_bytes() -> int:
    """Of this process's resident memory."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def agreement(arguments: argparse.Namespace) -> dict[str, object]:
    """Loss and gradient of the same rollouts, of any length, by both: how far they are apart."""
    with tempfile.TemporaryDirectory() as temporary:
        parts = parts_of(argparse.Namespace(**vars(arguments) | {"rollout": "transformers"}), Path(temporary))
        pipeline.prepare_process(parts)
        loaded = parts.model.load(Path(temporary) / "model")
        builder = parts.rollout.prompt_builder(loaded, parts.model.instruction)
        problems = [parts.source.load("train")[number] for number in range(arguments.prompts)]
        sampler = TransformersSampler()
        sampler.start(RolloutSettings(sampler=sampler).handle(loaded, problems))
        groups = sampler.generate(builder.build_all(problems).prompts, parts.rollout.sampling, seed="0")
        trl_loss, trl_gradient = trl_gradients(arguments, loaded, problems, groups)
        loss, gradient = atrl_gradients(parts, loaded, groups)
    lengths = {len(rollout.token_ids) for group in groups for rollout in group.rollouts}
    return {
        "response_lengths": [min(lengths), max(lengths)],
        "loss": [loss, trl_loss],
        "loss_difference": abs(loss - trl_loss) / abs(trl_loss),
        "gradient_norm": [float(gradient.norm()), float(trl_gradient.norm())],
        "gradient_difference": float((gradient - trl_gradient).norm() / trl_gradient.norm()),
        "gradient_cosine": float(torch.nn.functional.cosine_similarity(gradient, trl_gradient, dim=0)),
    }


def atrl_gradients(
    parts: pipeline.Parts, loaded: LoadedModel, groups: Sequence[RolloutGroup]
) -> tuple[float, torch.Tensor]:
    """By atrl's forward pass and objective; over the whole vocabulary, as TRL."""
    batch = build_experience(groups, pad_id=loaded.processor.tokenizer.pad_token_id)
    rewards = torch.tensor([[reward.total for reward in group] for group in parts.reward.score(groups)])
    advantages = parts.objective.advantage(rewards).flatten()[:, None].expand(batch.response_mask.shape)
    totals = BatchTotals(
        tokens=int(batch.response_mask.sum()), sequences=batch.size, max_response_tokens=batch.response_length
    )
    loaded.model.zero_grad()
    logprobs, _ = ForwardPass(temperature=1.0, banned_ids=(), share_prompts=True).logprobs(loaded.model, batch)
    loss, _ = parts.objective(logprobs, advantages, batch, totals)
    loss.backward()
    return loss.item(), flat_gradient(loaded.model)


def trl_gradients(
    arguments: argparse.Namespace, loaded: LoadedModel, problems: Sequence[Problem], groups: Sequence[RolloutGroup]
) -> tuple[float, torch.Tensor]:
    """By TRL's own training loop, which is given the responses and otherwise left alone."""
    from transformers import TrainerCallback

    rollouts = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    found: list[torch.Tensor] = []

    def given(prompts: Sequence, trainer) -> dict[str, list]:
        ids, *_ = trainer._tokenize_prompts(prompts)
        assert ids == [prompt.token_ids for prompt, _ in rollouts], "the two make other tokens of a prompt"
        return {
            "prompt_ids": ids,
            "completion_ids": [rollout.token_ids for _, rollout in rollouts],
            "logprobs": [rollout.logprobs for _, rollout in rollouts],
        }

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **options) -> None:
            found.append(flat_gradient(model))

    own = as_its_users_load_it(loaded)
    trainer, turns = peer(
        own, problems, letter_share, prompts=arguments.prompts, group_size=arguments.group_size,
        tokens=arguments.tokens, micro_batch=arguments.micro_batch, steps=1, learning_rate=LEARNING_RATE,
        rollout_func=given,
    )  # fmt: skip
    trainer.remove_callback(turns)
    trainer.add_callback(Keep())
    trainer.train()
    norm = turns.logs.values["grad_norm"]  # what the optimizer gets is clipped
    return turns.logs.values["loss"], found[0] / found[0].norm() * norm


def flat_gradient(model) -> torch.Tensor:
    """All of a model's gradients in one vector, in float64 for the sums over it."""
    return torch.cat([parameter.grad.flatten().double() for parameter in model.parameters()])


PARTS = {"agreement": agreement, "times": times, "memory_atrl": memory_atrl, "memory_trl": memory_trl}
