"""A started sampler as the training step sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from atrl.rollout.base import ResponseSource, Sampling
from atrl.types import Prompt, RolloutGroup


class RolloutSource(Protocol):
    """What the rollout callback binds: rollouts for prompts, from the newest weights that it was given."""

    def generate(self, prompts: Sequence[Prompt], *, seed: str) -> list[RolloutGroup]: ...
    def rest(self) -> None: ...
    def update_weights(self, parameters, version: int) -> None: ...


@dataclass(frozen=True, slots=True)
class BoundRollouts:
    """A started sampler together with how the run samples."""

    sampler: ResponseSource
    sampling: Sampling

    def generate(self, prompts: Sequence[Prompt], *, seed: str) -> list[RolloutGroup]:
        """A group of rollouts for every prompt."""
        groups = self.sampler.generate(prompts, self.sampling, seed=seed)
        assert not self.sampling.truncates or all(rollout.kept for group in groups for rollout in group.rollouts), (
            f"rollout={self.sampler.name} left tokens out without saying which, though says_what_it_keeps promises it"
        )
        return groups

    def rest(self) -> None:
        """No more rollouts until the weights are updated."""
        self.sampler.rest()

    def update_weights(self, parameters, version: int) -> None:
        """Hand the policy's parameters to the sampler."""
        self.sampler.update_weights(parameters, version)
