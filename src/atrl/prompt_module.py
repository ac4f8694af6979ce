"""What the two Lightning modules have in common: batches of prompts, and how their models are divided among ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning import LightningModule

from atrl.sharding import Sharding, is_sharded, shard
from atrl.tracking import forget_last_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PromptModule(LightningModule):
    """A module whose batches are lists of prompts, which stages move to the device as tensors when they need them.

    It has a `policy`, and a `reference` or None. `first_step` is the number of training steps that an earlier part of
    the run has done.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel | None = None
    first_step = 0
    sharding = Sharding()

    @property
    def device(self) -> torch.device:
        """Where batches are built: the trainer's device, wherever parameters wait for their use."""
        return super().device if self._trainer is None else self.trainer.strategy.root_device

    def configure_model(self) -> None:
        """Divide the models among the ranks, where the strategy is to; once, however many trainers follow."""
        if self.device_mesh is None:
            return
        for model in (self.policy, self.reference):
            if model is not None and not is_sharded(model):
                shard(model, self.device_mesh["data_parallel"], self.sharding)

    def on_train_batch_start(self, batch, batch_idx) -> None:
        """A step's metrics are its own: some steps have none by a name, as where no token reads the picture."""
        forget_last_step(self.trainer)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        """The batch as it is: Lightning would take frozen dataclasses apart to look for tensors."""
        return batch
