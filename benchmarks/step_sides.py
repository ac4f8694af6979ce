"""The parts of `step.py` in which steps are taken: atrl's training run, and TRL's beside it."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from device import overrides, peak_bytes, torch_device, wait_for_device
from hydra import compose, initialize_config_dir
from lightning import Callback
from step import LEARNING_RATE, MEMORY_STEPS, WARM_UP, speedup
from transformers import AutoModelForImageTextToText
from trl_peer import Turns, peer, settings

from atrl import pipeline, stages
from atrl.callbacks.rollout import RolloutCallback
from atrl.data.loader import PromptLoader
from atrl.models.load import LoadedModel
from atrl.rewards.base import RewardPart, Verdict
from atrl.rewards.weighted import WeightedReward
from atrl.rollout.base import ModelHandle
from atrl.rollout.settings import RolloutSettings
from atrl.rollout.transformers import end_token_ids
from atrl.types import Problem, Prompt

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from trl import GRPOConfig

    from atrl.sections import TrainerSettings


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


def composed(arguments: argparse.Namespace, folder: Path, *more: str) -> DictConfig:
    """The demo's settings without credit, those that TRL is given, and `more`."""
    own = [
        "logger=csv", f"logger.csv.save_dir='{folder}'", "credit=none",
        f"model.path={arguments.model}", f"rollout.prompts_per_step={arguments.prompts}",
        f"rollout.group_size={arguments.group_size}", f"rollout.max_response_tokens={arguments.tokens}",
        "rollout.check_sync_every=0", f"optimizer.micro_batch_size={arguments.micro_batch}",
        f"optimizer.learning_rate={LEARNING_RATE}", "optimizer.decay_to=1",
    ]  # fmt: skip
    share, threads = arguments.engine_share, arguments.threads
    placed = overrides(arguments.rollout, arguments.trainer, share=share, threads=threads)
    conf = str(Path(__file__).resolve().parents[1] / "conf")
    with initialize_config_dir(conf, version_base="1.3"):
        return compose("train", overrides=[*own, *placed, *more])


def parts_of(arguments: argparse.Namespace, folder: Path, *more: str) -> pipeline.Parts:
    """That run, with the reward that TRL is given, and responses that are all as long."""
    parts = pipeline.instantiate_parts(composed(arguments, folder, *more), folder)
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
    device_peak: int = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Behind the optimizer's step and the sync."""
        wait_for_device()
        self.seconds.append(time.perf_counter() - self.loader.began)
        self.device_peak = pl_module.timer.device_peak
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
        watch = Alternate(loader, None if beside is None else beside(parts, loaded, order))
        handle = parts.rollout.handle(loaded, [])
        sampler = RolloutCallback(parts.rollout, parts.rollout.sampling, handle, folder=folder, rescue=str)
        stages.fit(parts, stages.policy_module(parts, loaded), loader, [sampler, watch], enable_progress_bar=False)
    expected = {arguments.prompts * arguments.group_size * arguments.tokens}
    assert watch.tokens == expected, f"atrl generated {watch.tokens} tokens a step, expected {expected}"
    return watch


def trl_settings(arguments: argparse.Namespace, trainer: TrainerSettings, steps: int) -> GRPOConfig:
    """What TRL is given, as atrl is by `parts_of`."""
    return settings(
        trainer=trainer, prompts=arguments.prompts, group_size=arguments.group_size, tokens=arguments.tokens,
        micro_batch=arguments.micro_batch, steps=steps, learning_rate=LEARNING_RATE,
    )  # fmt: skip


def trl_steps(
    arguments: argparse.Namespace, parts: pipeline.Parts, loaded: LoadedModel, problems: Sequence[Problem], steps: int
) -> Turns:
    """TRL's trainer of a policy with the same weights, before its first step."""
    own = as_its_users_load_it(loaded)
    trainer, turns = peer(own, problems, letter_share, trl_settings(arguments, parts.trainer, steps))
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

    def beside(parts: pipeline.Parts, loaded: LoadedModel, problems: Sequence[Problem]) -> Callable[[], float]:
        sides.append(trl_steps(arguments, parts, loaded, problems, steps))
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
    watch = train(arguments, MEMORY_STEPS, None)
    return {"memory_atrl_bytes": peak_bytes(torch_device(arguments.trainer), noted=watch.device_peak)}


def memory_trl(arguments: argparse.Namespace) -> dict[str, object]:
    """Peak of a process in which TRL alone trains."""
    with tempfile.TemporaryDirectory() as temporary:
        parts = parts_of(argparse.Namespace(**vars(arguments) | {"rollout": "transformers"}), Path(temporary))
        pipeline.prepare_process(parts)
        loaded = parts.model.load(Path(temporary) / "model")
        problems = [parts.source.load("train")[number] for number in range(MEMORY_STEPS * arguments.prompts)]
        turns = trl_steps(arguments, parts, loaded, problems, MEMORY_STEPS)
        del loaded
        for _ in range(MEMORY_STEPS):
            turns.step()
    return {"memory_trl_bytes": peak_bytes(torch_device(arguments.trainer))}


PARTS = {"times": times, "memory_atrl": memory_atrl, "memory_trl": memory_trl}
