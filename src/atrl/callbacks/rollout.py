"""Binds a sampler to the policy module, owns its life and watches over it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from atrl.metrics import SamplerGap, sampler_gap
from atrl.module import PolicyModule
from atrl.rollout.base import ModelHandle, Sampling
from atrl.rollout.bound import BoundRollouts
from atrl.rollout.memory import training_bytes
from atrl.rollout.settings import RolloutSettings
from atrl.weight_sync import named_parameters

log = logging.getLogger(__name__)

LARGEST_GAP = 1e-3
"""Of a token's log-prob, in nats, where sampler and trainer both compute in float32; 5e-6 is usual, and one update of a
tiny model already moves it by more than this."""

LARGEST_KL = 1e-2
"""Of the sampler from the trainer, in nats a token, where one of them rounds to 16 bits; 1e-3 is usual."""


class RolloutCallback(Callback):
    """Starts the sampler before training, gives it the policy's first weights, closes it whatever happens.

    Each of its calls is watched: one that hangs ends the run, with the cause in the log. Every
    `settings.check_sync_every` steps, and at the first, the log-probs of the step's rollouts are compared between
    sampler and trainer. They were drawn after the last sync and scored before the next update, so they differ by no
    more than rounding if every weight arrived. The step's own forward pass scored them, so that costs nothing, and
    thousands of tokens of the run's own prompts are a wider probe than a prompt set aside.

    Args:
        settings: the sampler, not yet started, and how it is watched.
        sampling: how training rollouts are drawn.
        handle: what the sampler must know of the policy.
        folder: of the run; where a hung call leaves its traceback.
        rescue: saves what can be saved of a run whose sampler hangs, and says what that was.
    """

    def __init__(
        self,
        settings: RolloutSettings,
        sampling: Sampling,
        handle: ModelHandle,
        *,
        folder: Path,
        rescue: Callable[[], str],
    ) -> None:
        self._settings, self._sampling, self._handle = settings, sampling, handle
        self.sampler = settings.watched_sampler(folder, rescue)

    def setup(self, trainer: Trainer, pl_module: PolicyModule, stage: str) -> None:
        """Start and bind. The policy isn't on its device yet: an engine starts on an empty one."""
        self.sampler.start(replace(self._handle, training_bytes=held_bytes(trainer, pl_module)))
        self.sampler.update_weights(named_parameters(pl_module.policy), version=pl_module.steps_done)
        pl_module.rollouts = BoundRollouts(self.sampler, self._sampling)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Look whether the last sync reached the sampler, if it is time."""
        every = self._settings.check_sync_every
        if every and (batch_idx == 0 or (batch_idx + 1) % every == 0):
            problem = disagreement(sampler_gap(pl_module.last_step), exact=self._exact(trainer, pl_module))
            if problem is not None:
                log.warning("step %d, rollout=%s: %s", pl_module.steps_done, self.sampler.name, problem)

    def teardown(self, trainer: Trainer, pl_module: PolicyModule, stage: str) -> None:
        """Unbind and close."""
        self._close(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: PolicyModule, exception: BaseException) -> None:
        """Close the engine, so that a failed run leaves no process behind."""
        self._close(pl_module)

    def _close(self, pl_module: PolicyModule) -> None:
        pl_module.rollouts = None
        self.sampler.close()

    def _exact(self, trainer: Trainer, pl_module: PolicyModule) -> bool:
        """Whether neither side rounds to less than float32."""
        sampler = getattr(self._settings.sampler, "dtype", "float32")  # one without works with the policy's
        policy = {parameter.dtype for parameter in pl_module.policy.parameters()}
        computing = trainer.precision == "32-true" and pl_module.sharding.compute_dtype is None
        return sampler == "float32" and policy == {torch.float32} and computing


def held_bytes(trainer: Trainer, module: PolicyModule) -> int:
    """What training `module` will hold of this process's GPU for good, its rank's share where the policy is divided."""
    if module.sharding.offload:
        return 0
    shards = trainer.world_size if isinstance(trainer.strategy, ModelParallelStrategy) else 1
    return training_bytes(module.policy) // shards


def disagreement(gap: SamplerGap, *, exact: bool) -> str | None:
    """One line where sampler and trainer differ by more than rounding explains, with what to do; None otherwise."""
    if exact and not gap.largest <= LARGEST_GAP:  # NaN is a disagreement too
        size = f"{gap.largest:.1e} nats at a token (up to {LARGEST_GAP:g} is rounding)"
    elif not exact and not gap.kl <= LARGEST_KL:
        size = f"a divergence of {gap.kl:.1e} nats a token (up to {LARGEST_KL:g} is rounding)"
    else:
        return None
    return (
        f"the sampler's log-probs are {size} from the trainer's, so it may not have the policy's weights, or not its "
        "pictures: try rollout=transformers, which shares them; if that agrees, the sampler is at fault"
    )
