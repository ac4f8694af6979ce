"""What the two Lightning modules have in common: batches of prompts, and how their models are divided among ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning import LightningModule


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How `trainer.strategy=fsdp` divides a model (see `sharding.shard`)."""

    compute_dtype: torch.dtype | None = None
    offload: bool = False


class PromptModule(LightningModule):
    """A module whose batches are lists of prompts, which stages move to the device as tensors when they need them.

    It has a `policy`, and a `reference` or None.
    """

    reference = None
    sharding = Sharding()

    def configure_model(self) -> None:
        """Divide the models among the ranks, where the strategy is to; once, however many trainers follow."""
        if self.device_mesh is None:
            return
        from atrl.sharding import is_sharded, shard

        for model in (self.policy, self.reference):
            if model is not None and not is_sharded(model):
                mesh, options = self.device_mesh["data_parallel"], self.sharding
                shard(model, mesh, compute_dtype=options.compute_dtype, offload=options.offload)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        """The batch as it is: Lightning would take frozen dataclasses apart to look for tensors."""
        return batch
