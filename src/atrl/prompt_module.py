"""What the two Lightning modules have in common: batches of prompts."""

from __future__ import annotations

from lightning import LightningModule


class PromptModule(LightningModule):
    """A module whose batches are lists of prompts, which stages move to the device as tensors when they need them."""

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        """The batch as it is: Lightning would take frozen dataclasses apart to look for tensors."""
        return batch
