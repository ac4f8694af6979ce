"""What `export.py` is to export: a training checkpoint with the model that it is of, or a model's folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrl.checkpoint import LAST, STATE, Checkpoint, model_tensors, newest_checkpoint, read_checkpoint, state_tensors
from atrl.models.asked import trained_instruction
from atrl.models.load import resolve_checkpoint
from atrl.models.lora import Lora
from atrl.suggest import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Where weights and all else come from; nothing is loaded yet."""

    form: str
    """Folder or hub name with configuration and processor."""
    checkpoint: Checkpoint | None
    """With the weights; None takes those of `form`."""

    @property
    def model(self) -> dict[str, Any]:
        """The settings of `model` that the checkpoint's run had."""
        return {} if self.checkpoint is None else (self.checkpoint.state.get("config") or {}).get("model") or {}

    @property
    def instruction(self) -> str | None:
        """What questions ended in while the weights were trained; None where that is not known."""
        return trained_instruction(self.form) if self.checkpoint is None else self.model.get("instruction")

    @property
    def lora(self) -> Lora | None:
        """The adapters that the checkpoint holds, and nothing else."""
        options = self.model.get("lora")
        # Built by name: what a file says is the class to build is not called.
        return options and Lora(**{name: value for name, value in options.items() if name != "_target_"})

    @property
    def folder(self) -> Path | None:
        """The folder that must not be written to."""
        found = Path(self.form) if self.checkpoint is None else self.checkpoint.folder
        return found if found.is_dir() else None


def find_source(named: str, form: str | None = None) -> Source:
    """A checkpoint, a run's folder (its newest checkpoint, or `model/` where it has none), or a model's folder.

    Args:
        named: the path.
        form: of the model, in the place of what the run says it started from.

    Raises:
        ValueError: if there is nothing to export, or the model that the run started from is gone.
    """
    path = Path(named).expanduser()
    if (path / STATE).is_file():
        found = read_checkpoint(path)
    else:
        found = newest_checkpoint(path / "checkpoints") or newest_checkpoint(path)
    if found is not None:
        return Source(_form_of(found) if form is None else resolve_checkpoint(form), found)
    if form is not None:
        raise ValueError(f"form={form} is for training checkpoints, and {named} holds none: leave it out")
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return Source(str(folder), None)
    siblings = path.parent.iterdir() if path.parent.is_dir() and not path.exists() else ()
    hint = did_you_mean(path.name, [entry.name for entry in siblings])
    raise ValueError(
        f"checkpoint={named}: nothing to export there{hint or ':'} name a run's folder, a checkpoint "
        f"(…/checkpoints/{LAST}) or a model's folder"
    )


def _form_of(checkpoint: Checkpoint) -> str:
    """What the run of `checkpoint` started from; the model that it left, where that is gone."""
    run = checkpoint.folder.parent.parent
    started_from = (checkpoint.state.get("config") or {}).get("model", {}).get("path")
    for name in (started_from, run / "initial_model", run / "model"):
        try:
            if name is not None:
                return resolve_checkpoint(str(name))
        except ValueError:
            continue
    gone = f"{started_from!r} is gone" if started_from else "initial_model/ is gone from its folder"
    raise ValueError(
        f"the model that {checkpoint.folder} started from is not known, {gone}: add form=FOLDER, a model of the same "
        "kind with configuration and processor"
    )


def skeleton(form: str, *, trust_remote_code: bool) -> PreTrainedModel:
    """The model of `form` with its generation configuration, and without memory for weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    config = AutoConfig.from_pretrained(form, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    with suppress(OSError):  # where it has none, what the configuration says is taken
        model.generation_config = GenerationConfig.from_pretrained(form)
    return model


def gather(checkpoint: Checkpoint, model: PreTrainedModel, convert: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The weights of `checkpoint`, all ranks' parts put together, each as `convert` returns it.

    Raises:
        ValueError: where they are not those of `model`.
    """
    expected = {name: tensor.shape for name, tensor in state_tensors(model)}
    state: dict[str, Tensor] = {}
    for name, tensor in model_tensors(checkpoint, expected):
        if tensor.shape != expected[name]:
            raise ValueError(
                f"{checkpoint.folder} has {name} of shape {list(tensor.shape)}, the model {list(expected[name])}: it "
                "is of another model, name that by form=FOLDER"
            )
        state[name] = convert(tensor)
    return state
