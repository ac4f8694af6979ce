"""What `export.py` does: a training checkpoint → a folder in Hugging Face form, and perhaps the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig

from atrl.config import check_config, read_section
from atrl.export.settings import ExportSettings
from atrl.export.source import Source, find_source, gather, skeleton

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def export(config: DictConfig) -> Path:
    """Write what `config.checkpoint` holds to `config.path`, and push it where that is asked for; the folder.

    In host memory are the weights once, and those of one file once more while it is written.

    Raises:
        ValueError: if the settings, the checkpoint or the place can't be used; before any weights are read.
    """
    check_config(config, sections={"": ExportSettings})
    settings = read_section(config, ExportSettings)
    folder = Path(settings.path).expanduser()
    source = find_source(settings.checkpoint, settings.form)
    check_place(folder, source, overwrite=settings.overwrite)
    if settings.push_to_hub is not None:
        from atrl.export.hub import check_login

        check_login(settings.push_to_hub)
    _write(source, folder, settings)
    print(f"written to {folder}")
    if settings.push_to_hub is not None:
        from atrl.export.hub import push

        print(f"pushed to {push(folder, settings.push_to_hub, private=settings.private)}")
    return folder


def check_place(folder: Path, source: Source, *, overwrite: bool) -> None:
    """Raises ValueError, in one line, where `folder` can't be written to, or holds what must not be lost."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"path={folder} is a file: name a folder")
    if folder.is_symlink():
        raise ValueError(f"path={folder} is a link, which is not replaced: name the folder {folder.resolve()}")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"path={folder} is not empty: name another, or replace what is in it with overwrite=true")
    kept = source.folder
    if kept is not None and kept.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"path={folder} holds {kept}, which is exported from: name another folder")
    if not (folder / "config.json").is_file():
        raise ValueError(f"overwrite=true replaces models alone, and path={folder} has no config.json: name another")


def _write(source: Source, folder: Path, settings: ExportSettings) -> None:
    from transformers import AutoProcessor

    from atrl.export.write import write_model

    options = {"trust_remote_code": settings.trust_remote_code}
    try:
        processor = AutoProcessor.from_pretrained(source.form, **options)
        model, state = _weights(source, settings)
    except OSError as error:  # transformers' own, for a folder or hub name that lacks a file
        cause = str(error).splitlines()[0]
        raise ValueError(f"{source.form} can't be read ({cause}): name a model by form=FOLDER") from error
    size = settings.max_shard_size
    write_model(model, processor, state, folder, instruction=source.instruction, max_shard_size=size)


def _weights(source: Source, settings: ExportSettings) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """A model that has configuration and dtype of what is written, and its tensors."""
    import torch

    wanted = None if settings.dtype == "keep" else getattr(torch, settings.dtype)

    def converted(tensor: Tensor) -> Tensor:
        return tensor.to(wanted) if wanted is not None and tensor.is_floating_point() else tensor

    if source.checkpoint is None:
        from transformers import AutoModelForImageTextToText

        from atrl.weight_sync import whole_state

        loaded = AutoModelForImageTextToText.from_pretrained(
            source.form, dtype=wanted or "auto", trust_remote_code=settings.trust_remote_code
        )
        return loaded, whole_state(loaded)
    model = skeleton(source.form, trust_remote_code=settings.trust_remote_code)
    if source.lora is None:
        state = gather(source.checkpoint, model, converted)
    else:
        state = {name: converted(tensor) for name, tensor in merged(source, settings).items()}
    cast("nn.Module", model).to(next(tensor.dtype for tensor in state.values() if tensor.is_floating_point()))
    return model, state


def merged(source: Source, settings: ExportSettings) -> dict[str, Tensor]:
    """The weights that the adapters were trained beside, with these added; a checkpoint holds the adapters alone.

    Raises:
        ValueError: if those at `source.form` are others, as outputs/latest is once the run that began there has ended.
    """
    from atrl.checkpoint import load_tensors
    from atrl.models.load import PretrainedModel
    from atrl.resume import has_same_base
    from atrl.weight_sync import whole_state

    options: dict[str, Any] = {name: source.model[name] for name in ("dtype", "quantization") if name in source.model}
    options |= {"lora": source.lora, "trust_remote_code": settings.trust_remote_code}
    base = PretrainedModel(path=source.form, **options)
    folder = base.weights_folder()
    if not has_same_base(source.checkpoint, folder):
        raise ValueError(
            f"{source.checkpoint.folder} holds adapters that were trained beside other weights than those in {folder}: "
            "name the model that the run began with by form=FOLDER"
        )
    model = base.load(source.checkpoint.folder).model
    load_tensors(source.checkpoint, model, None)
    return whole_state(model)
