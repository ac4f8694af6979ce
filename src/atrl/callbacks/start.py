"""Begins training where a checkpoint left it."""

from __future__ import annotations

from lightning import Callback

from atrl.checkpoint import Checkpoint, load_tensors
from atrl.data.loader import PromptLoader
from atrl.module import PolicyModule
from atrl.schedule import optimizer_of, schedule_of, set_progress
from atrl.weight_sync import named_parameters


class StartCallback(Callback):
    """Gives policy, optimizer and other callbacks their saved state, the schedule its place, the sampler the policy.

    Must come first: what other callbacks do when training starts, they do with the policy that it starts from.

    Args:
        start: the checkpoint.
        loader: of the prompts, which goes on where the data was left.
    """

    def __init__(self, start: Checkpoint, loader: PromptLoader) -> None:
        self._start = start
        loader.load_state_dict(start.state["loader"])

    def on_train_start(self, trainer, pl_module: PolicyModule) -> None:
        """Hand everything out."""
        state = self._start.state
        pl_module.resume_at(self._start.step, state["phases"])
        trainer.fit_loop.epoch_loop.on_load_checkpoint({"_batches_that_stepped": self._start.step})
        load_tensors(self._start, pl_module.policy, optimizer_of(pl_module))
        # By the settings of now, which may allow another rate, length or number of updates a batch.
        set_progress(schedule_of(pl_module), self._start.step * pl_module.objective.updates_per_batch)
        for callback in trainer.callbacks:
            if callback.state_key in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.state_key])
        pl_module.rollouts.update_weights(named_parameters(pl_module.policy), version=pl_module.steps_done)
