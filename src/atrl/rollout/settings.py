"""The config group `rollout`: how many responses, how long, and by which engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrl.data.frames import FrameSampler
from atrl.data.generated import examples
from atrl.data.prompts import PromptBuilder, resizing
from atrl.data.templates import banned_token_ids, turn_end_ids
from atrl.rollout.base import ModelHandle, Sampling
from atrl.rollout.truncation import check_truncation
from atrl.rollout.watch import Watch, WatchedSampler
from atrl.types import Problem

if TYPE_CHECKING:
    from atrl.models.load import LoadedModel


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """How training rollouts are drawn.

    Args:
        sampler: the engine, not yet started.
        group_size: responses per prompt.
        prompts_per_step: prompts per training step.
        temperature: of the softmax.
        top_k: draw among the likeliest so many tokens; None is all.
        top_p: draw among the likeliest tokens that together have this probability; 1 is all.
        min_p: draw among tokens that are at least so many times as likely as the likeliest; 0 is all.
        max_response_tokens: a response is cut there.
        max_prompt_tokens: a prompt that is longer, image and video tokens included, is dropped.
        video_frames: frames that are shown of a video: all of a shorter one, else so many, evenly spread.
        video_rate: frames per second that are shown instead, `video_frames` at most; None goes by number.
        timeout_s: seconds that a call of the sampler may take before it counts as hung and the run is ended: to sample
            a step's rollouts, to start, to take over weights. Calls for more rollouts get as much more.
        check_sync_every: training steps between looks at whether sampler and trainer still agree on the log-probs of a
            step's rollouts; 0 is never.
    """

    sampler: Any
    group_size: int = 8
    prompts_per_step: int = 16
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    max_response_tokens: int = 64
    max_prompt_tokens: int = 256
    timeout_s: float = 1800.0
    check_sync_every: int = 20
    video_frames: int = 16
    video_rate: float | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(
                f"rollout.temperature must be positive, got {self.temperature}: training samples need chance"
            )
        for name in ("prompts_per_step", "max_prompt_tokens", "max_response_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollout.{name} must be at least 1, got {getattr(self, name)}")
        if self.timeout_s <= 0:
            raise ValueError(f"rollout.timeout_s must be above 0, got {self.timeout_s}: seconds, 1800 is usual")
        if self.check_sync_every < 0:
            raise ValueError(f"rollout.check_sync_every must be 0 (never) or more, got {self.check_sync_every}")
        _ = self.frames  # refuses what is out of range
        check_truncation(top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)

    @property
    def sampling(self) -> Sampling:
        """What the sampler is told for a training step."""
        return Sampling(
            group_size=self.group_size,
            temperature=self.temperature,
            max_response_tokens=self.max_response_tokens,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
        )

    def watched_sampler(self, folder: Path, rescue: Callable[[], str]) -> WatchedSampler:
        """The sampler, whose calls end the process where they hang; see `Watch` for `rescue`.

        Where it hung is then in `hung.txt` in `folder`.
        """
        return WatchedSampler(
            sampler=self.sampler,
            watch=Watch(seconds=self.timeout_s, traceback_file=folder / "hung.txt", rescue=rescue),
            usual_rollouts=self.prompts_per_step * self.group_size,
        )

    @property
    def frames(self) -> FrameSampler:
        """Which frames of a video are shown."""
        return FrameSampler(count=self.video_frames, rate=self.video_rate)

    def prompt_builder(self, loaded: LoadedModel, instruction: str | None) -> PromptBuilder:
        """How problems become prompts for this model."""
        return PromptBuilder(
            processor=loaded.processor,
            instruction=instruction or "",
            max_prompt_tokens=self.max_prompt_tokens,
            frames=self.frames,
        )

    def handle(self, loaded: LoadedModel, problems: Sequence[Problem]) -> ModelHandle:
        """What the sampler must know of the policy to answer `problems`.

        Generated problems are not looked through one by one: they have as many pictures and videos as the first.
        """
        listed = examples(problems)
        return ModelHandle(
            folder=loaded.folder,
            model=loaded.model,
            tokenizer=loaded.processor.tokenizer,
            banned_ids=banned_token_ids(loaded.processor),
            turn_end_ids=turn_end_ids(loaded.processor),
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
            max_images=max((len(problem.images) for problem in listed), default=1) or 1,
            resizing=resizing(loaded.processor),
            max_videos=max((len(problem.videos) for problem in listed), default=0),
        )
