"""The config group `rollout`: how many responses, how long, and by which engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atrl.rollout.base import Sampling


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
            raise ValueError(f"rollout.temperature must be positive, got {self.temperature}: training samples need chance")
        for name in ("prompts_per_step", "max_prompt_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollout.{name} must be at least 1, got {getattr(self, name)}")

    @property
    def sampling(self) -> Sampling:
        """What the sampler is told for a training step."""
        return Sampling(
            group_size=self.group_size, temperature=self.temperature, max_response_tokens=self.max_response_tokens
        )
