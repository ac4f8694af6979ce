"""What the KL term compares with, on disk, where neither checkpoints nor the settings lead back to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from atrl.checkpoint import Checkpoint, state_tensors
from atrl.launch import main_process

if TYPE_CHECKING:
    from torch import nn

REFERENCE = "reference.safetensors"
"""Beside the checkpoints of a run whose reference is the policy as the warm-up left it."""


def check_reference(start: Checkpoint) -> None:
    """Raises ValueError where `REFERENCE` is not beside the checkpoint `start`."""
    file = start.folder.parent / REFERENCE
    if not file.is_file():
        raise ValueError(
            f"{start.folder} can't go on: the KL term's reference, which the warm-up left, is not in {file}: put it "
            "there, or start a new run"
        )


def keep_reference(root: Path, reference: nn.Module, start: Checkpoint | None) -> None:
    """Leave `reference` in the folder `root` of checkpoints; a run that goes on from `start` first takes it from there.

    The warm-up isn't run again then, so that without the file the reference would be the model from before it.
    """
    from safetensors.torch import load_file, save_file
    from torch import no_grad

    if start is not None:
        saved = load_file(start.folder.parent / REFERENCE)
        with no_grad():
            for name, tensor in state_tensors(reference):
                tensor.copy_(saved[name])
    if main_process() and (start is None or start.folder.parent != root.resolve()):
        root.mkdir(exist_ok=True)
        beside = root / f".{REFERENCE}"
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in state_tensors(reference)}, beside)
        beside.replace(root / REFERENCE)
