"""The section `planner`: what the planner is told beside the run's own settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PlannerSettings:
    """What a run's own settings don't say; null takes what they do say."""

    prompt_tokens: int | None = None  # of the longest prompt; null is rollout.max_prompt_tokens
    image_tokens: int | None = None  # of these; null is all of them, which takes most memory
    response_tokens: float | None = None  # mean length of a response; null is rollout.max_response_tokens

    def __post_init__(self) -> None:
        """Raises ValueError for a count that is too small."""
        for name in ("prompt_tokens", "response_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"planner.{name} must be at least 1, got {value}")
        if self.image_tokens is not None and self.image_tokens < 0:
            raise ValueError(f"planner.image_tokens must be 0 or more, got {self.image_tokens}")
