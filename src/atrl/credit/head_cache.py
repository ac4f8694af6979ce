"""Scores of a model's heads kept between runs, one small JSON file for each model and way of measuring."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from atrl.weight_sync import named_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from atrl.credit.base import HeadSearch
    from atrl.rollout.base import Sampling
    from atrl.types import Prompt

log = logging.getLogger(__name__)

VALUES_PER_PARAMETER = 8


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/atrl/heads``; ``~/.cache/atrl/heads`` where the variable is unset, empty or relative.

    XDG Base Directory Specification, version 0.8.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "atrl" / "heads"


def cache_key(
    model: PreTrainedModel,
    search: HeadSearch,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    other: Sequence[Prompt] = (),
) -> str:
    """sha256 over all that the scores depend on, in hexadecimal; two models or measurements never share one.

    - The model: its configuration as ``config.json`` holds it, apart from the version of transformers that wrote it,
      and of every parameter the name, shape, type and `VALUES_PER_PARAMETER` values at even distances. Training moves
      nearly every value, so a few of each tell weights apart without reading gigabytes.
    - The data: question tokens and pixels of the calibration prompts, and the tensors that the processor made of them,
      which its settings and a video's frame rate change; those of the `other` ones too, where the criterion compares
      with them. A data set's name would not do: files that are read by the same class share it.
    - The criterion, which row and sinks, how responses are sampled, and the precision that autocast computes in.

    Not the count and the layers, which choose among the same scores; nor the engine that samples, whose responses have
    the same distribution.
    """
    digest = hashlib.sha256()
    config = json.loads(model.config.to_json_string())  # without the folder that it was loaded from
    config.pop("transformers_version", None)
    device = model.device.type
    precision = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "as it is"
    how = [search.criterion, search.row, search.sink_factor, precision]
    drawn = asdict(sampling)
    for part in (config, how, drawn):
        digest.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\n")
    _add_parameters(digest, model)
    for prompt in prompts:
        digest.update(f"{prompt.key} {prompt.token_ids}\n".encode())
        shown = [*prompt.images, *(image for frames in prompt.videos for image in frames.images)]
        for image in shown:
            digest.update(f"{image.size}".encode() + image.tobytes())
    for prompt in (*prompts, *other):
        _add_pixels(digest, prompt)
    return digest.hexdigest()


def load_scores(path: Path, shape: tuple[int, int]) -> Float[Tensor, "layer head"] | None:
    """The scores that `path` holds, or None where there is no such file, or none that can be used: then with a warning.

    Args:
        path: of a file that `store_scores` wrote.
        shape: layers and heads of the model.
    """
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))["scores"]
        if [len(row) for row in scores] != [shape[1]] * shape[0]:
            raise ValueError(f"its scores are not those of {shape[0]} layers of {shape[1]} heads")
        if not all(math.isfinite(score) for row in scores for score in row):
            raise ValueError("it holds scores that are no finite numbers")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        log.warning("the cached heads in %s can't be used (%s): they are measured again", path, repr(error))
        return None
    return torch.tensor(scores, dtype=torch.float64)


def store_scores(path: Path, content: dict[str, Any]) -> None:
    """Write `content`, with its ``scores``, as a whole or not at all; where it can't be written a warning says so.

    A run needs no cache, so a full or read-only disk does not stop it. Processes that store the same at the same time
    don't disturb each other: each writes a file of its own and renames it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    except OSError as error:
        log.warning("the heads can't be cached in %s (%s)", path, error)
        return
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
        os.replace(name, path)
    except OSError as error:
        log.warning("the heads can't be cached in %s (%s)", path, error)
    finally:
        Path(name).unlink(missing_ok=True)


def _add_pixels(digest: hashlib._Hash, prompt: Prompt) -> None:
    for name, tensor in sorted(prompt.pixels.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # As bytes, since numpy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _add_parameters(digest: hashlib._Hash, model: PreTrainedModel) -> None:
    picked = []
    for name, parameter in named_parameters(model):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        places = torch.linspace(0, max(0, parameter.numel() - 1), VALUES_PER_PARAMETER, dtype=torch.float64).long()
        picked.append(parameter.flatten()[places.to(parameter.device)].float().cpu())
    digest.update(torch.cat(picked).numpy().tobytes())
