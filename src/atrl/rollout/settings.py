"""The config group `rollout`: how many responses, how long, and by which engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atrl.data.prompts import PromptBuilder
from atrl.data.templates import banned_token_ids, turn_end_ids
from atrl.rollout.base import ModelHandle, Sampling
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
        max_response_tokens: a response is cut there.
        max_prompt_tokens: a prompt that is longer, image tokens included, is dropped.
    """

    sampler: Any
    group_size: int = 8
    prompts_per_step: int = 16
    temperature: float = 1.0
    max_response_tokens: int = 64
    max_prompt_tokens: int = 256

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(
                f"rollout.temperature must be positive, got {self.temperature}: training samples need chance"
            )
        for name in ("prompts_per_step", "max_prompt_tokens", "max_response_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollout.{name} must be at least 1, got {getattr(self, name)}")

    @property
    def sampling(self) -> Sampling:
        """What the sampler is told for a training step."""
        return Sampling(
            group_size=self.group_size, temperature=self.temperature, max_response_tokens=self.max_response_tokens
        )

    def prompt_builder(self, loaded: LoadedModel, instruction: str) -> PromptBuilder:
        """How problems become prompts for this model."""
        return PromptBuilder(
            processor=loaded.processor, instruction=instruction, max_prompt_tokens=self.max_prompt_tokens
        )

    def handle(self, loaded: LoadedModel, problems: Sequence[Problem]) -> ModelHandle:
        """What the sampler must know of the policy to answer `problems`.

        Generated problems are not looked through one by one: they have one picture each.
        """
        listed = problems if isinstance(problems, list) else []
        return ModelHandle(
            folder=loaded.folder,
            model=loaded.model,
            tokenizer=loaded.processor.tokenizer,
            banned_ids=banned_token_ids(loaded.processor),
            turn_end_ids=turn_end_ids(loaded.processor),
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
            max_images=max((len(problem.images) for problem in listed), default=1) or 1,
        )
