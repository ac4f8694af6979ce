"""A model's folder as transformers and vLLM load it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, cast

from atrl.models.asked import note_instruction
from atrl.models.quantization import full_form

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor
    from transformers import PreTrainedModel, ProcessorMixin

SHARD_SIZE = "5GB"
"""Of a file of weights. safetensors copies a file's tensors before it writes them: so much is in memory twice."""


def write_model(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    state: dict[str, Tensor],
    folder: Path,
    *,
    instruction: str | None,
    max_shard_size: str = SHARD_SIZE,
) -> None:
    """Write safetensors, configuration, tokenizer, processor, chat template and generation configuration to `folder`.

    It is written beside its place and then moved there, so that it appears whole or not at all; what was there before
    is gone then.

    Args:
        model: gives configuration and names; its own weights are not looked at.
        processor: of the model.
        state: every parameter and buffer once, by its name in `model`, in host memory.
        folder: where to.
        instruction: that questions ended in while it was trained; None where that is not known.
        max_shard_size: weights beyond it go to several files, with an index.
    """
    beside, before = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.before")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in (beside, before):
        shutil.rmtree(leftover, ignore_errors=True)
    full_form(model).save_pretrained(beside, state_dict=dict(state), max_shard_size=max_shard_size)
    processor.save_pretrained(beside)
    note_instruction(beside, instruction)
    if folder.exists():
        folder.rename(before)
    beside.rename(folder)
    shutil.rmtree(before, ignore_errors=True)


def write_adapter(model: PreTrainedModel, state: dict[str, Tensor], folder: Path) -> None:
    """The adapter alone, as `peft.PeftModel.from_pretrained` puts it on the model that the run started from.

    Args:
        model: that has it.
        state: as `adapter_state` gives it.
        folder: where to.
    """
    from dataclasses import replace

    from safetensors.torch import save_file

    from atrl.models.lora import ADAPTER

    folder.mkdir(exist_ok=True)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = cast("PeftConfig", model.peft_config[ADAPTER])
    replace(settings, base_model_name_or_path=model.name_or_path, inference_mode=True).save_pretrained(str(folder))
