"""Binds a sampler to the policy module and owns its life."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning import Callback, LightningModule, Trainer

from atrl.module import PolicyModule
from atrl.rollout.base import ModelHandle, Sampler, Sampling
from atrl.types import Prompt, RolloutGroup
from atrl.weight_sync import named_parameters


@dataclass(frozen=True, slots=True)
class BoundRollouts:
    """A started sampler together with how the run samples."""

    sampler: Sampler
    sampling: Sampling

    def generate(self, prompts: Sequence[Prompt], *, seed: str) -> list[RolloutGroup]:
        """A group of rollouts for every prompt.

        Raises:
            ValueError: if the sampler leaves tokens out and doesn't say which, so that the trainer's log-probs would be
                those of another distribution.
        """
        groups = self.sampler.generate(prompts, self.sampling, seed=seed)
        if self.sampling.truncates and any(rollout.kept is None for group in groups for rollout in group.rollouts):
            raise ValueError(
                f"rollout={self.sampler.name} doesn't say which tokens rollout.top_k, top_p and min_p left: "
                "set top_k=null, top_p=1 and min_p=0"
            )
        return groups

    def update_weights(self, parameters, version: int) -> None:
        """Hand the policy's parameters to the sampler."""
        self.sampler.update_weights(parameters, version)


class RolloutCallback(Callback):
    """Starts the sampler before training, gives it the policy's first weights, closes it whatever happens.

    Args:
        sampler: not yet started.
        sampling: how training rollouts are drawn.
        handle: what the sampler must know of the policy.
    """

    def __init__(self, sampler: Sampler, sampling: Sampling, handle: ModelHandle) -> None:
        self.sampler, self._sampling, self._handle = sampler, sampling, handle

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start and bind."""
        assert isinstance(pl_module, PolicyModule)
        self.sampler.start(self._handle)
        self.sampler.update_weights(named_parameters(pl_module.policy), version=pl_module.steps_done)
        pl_module.rollouts = BoundRollouts(self.sampler, self._sampling)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Unbind and close."""
        self._close(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the engine, so that a failed run leaves no process behind."""
        self._close(pl_module)

    def _close(self, pl_module: LightningModule) -> None:
        pl_module.rollouts = None
        self.sampler.close()
