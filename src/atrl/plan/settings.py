"""The section `planner`: what the planner is told beside the run's own settings."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True, kw_only=True)
class PlannerSettings:
    """What a run's own settings don't say, or can't say yet; null takes what they do say."""

    prompt_tokens: int | None = None  # of the longest prompt; null is rollout.max_prompt_tokens
    image_tokens: int | None = None  # of these; null is all of them, which takes most memory
    response_tokens: float | None = None  # mean length of a response; null is rollout.max_response_tokens
    lora_rank: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a count that is too small."""
        for name in ("prompt_tokens", "response_tokens", "lora_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"planner.{name} must be at least 1, got {value}")
        if self.image_tokens is not None and self.image_tokens < 0:
            raise ValueError(f"planner.image_tokens must be 0 or more, got {self.image_tokens}")


LORA_RANK = "model.lora.rank"
"""Where a run says what `planner.lora_rank` may say instead. A config without the key can't be run with adapters."""


def planned_can_be_run(config: DictConfig) -> str | None:
    """What is planned with must be what is trained with, or only be planned."""
    planned = OmegaConf.select(config, "planner.lora_rank")
    if OmegaConf.select(config, "plan") or planned is None or OmegaConf.select(config, LORA_RANK) == planned:
        return None
    return f"planner.lora_rank={planned} is not what the run would do: add plan=true, or set it to null"
