"""A training state on disk: one safetensors file a rank, and one JSON file for everything that is no tensor.

A checkpoint of any number of ranks, whole or divided, loads onto any other number, whole or divided: a divided
parameter is the ranks' parts one below the other, in order of rank, as FSDP2 cuts it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrl import parallel
from atrl.models.lora import has_adapters

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

STATE = "state.json"
LAST = "last"
FORMAT = 1


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """One that is complete, its tensors not read yet."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Training steps that it comes after."""
        return self.state["step"]


def write_checkpoint(
    root: Path,
    state: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    *,
    still: Callable[[], bool] | None = None,
) -> Path | None:
    """Write `root/step_…`, point `root/last` at it, and return it; all ranks together.

    It appears whole or not at all: a killed write leaves what was there before.

    With `still` the first rank, whose `model` must be whole, writes by itself and waits for no other; it asks at the
    end whether what it wrote is still one state, and returns None where it is not.
    """
    name = f"step_{state['step']:06d}"
    beside = root / f".{name}"
    barrier, ranks = (parallel.barrier, parallel.world_size()) if still is None else (lambda: None, 1)
    if parallel.rank() == 0:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    barrier()
    _write_rank(beside / _rank_file(parallel.rank()), model, optimizer)
    barrier()
    if still is not None and not still():
        shutil.rmtree(beside)
        return None
    if parallel.rank() == 0:
        content = state | {"format": FORMAT, "ranks": ranks}
        (beside / STATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for file in beside.iterdir():
            _to_disk(file)
        shutil.rmtree(root / name, ignore_errors=True)
        beside.rename(root / name)
        point_last_at(root / name)
    barrier()
    return root / name


def point_last_at(folder: Path) -> None:
    """Make `last`, beside the checkpoint in `folder`, mean that one."""
    link = folder.with_name(f".{LAST}")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name, target_is_directory=True)
    link.replace(folder.with_name(LAST))


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, without its tensors.

    Raises:
        ValueError: if it is none, or of another version of the format.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no checkpoint: {STATE} can't be read ({error})") from error
    if state.get("format") != FORMAT:
        raise ValueError(f"{folder} has checkpoint format {state.get('format')}, this version reads {FORMAT}")
    missing = [rank for rank in range(state["ranks"]) if not (folder / _rank_file(rank)).is_file()]
    if missing:
        raise ValueError(f"{folder} is incomplete: {_rank_file(missing[0])} is missing, take another checkpoint")
    return Checkpoint(folder.resolve(), state)


def newest_checkpoint(root: Path) -> Checkpoint | None:
    """The last complete one under `root`; None where there is none."""
    numbered = sorted((folder for folder in root.glob("step_*") if (folder / STATE).is_file()), reverse=True)
    return read_checkpoint(numbered[0]) if numbered else None


def load_tensors(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer | None) -> None:
    """Give `model`, `optimizer` and this rank's random generators what the checkpoint holds, in place.

    The generators of a rank that the checkpoint has not, having been written by fewer, stay as they are.

    Raises:
        ValueError: if it is of another model.
    """
    from safetensors import safe_open

    with ExitStack() as opened:
        saved = _Saved(checkpoint, opened)
        for name, tensor in state_tensors(model):
            saved.copy(f"model/{name}", tensor)
        if optimizer is not None:
            _load_optimizer(optimizer, model, saved)
    own = checkpoint.folder / _rank_file(parallel.rank())
    if own.is_file():
        with safe_open(own, "pt") as file:
            _set_random_states(file)


def model_tensors(checkpoint: Checkpoint, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """The policy's parameters and buffers, each whole, one at a time.

    Args:
        checkpoint: of any number of ranks.
        names: of a model's parameters and buffers, which must be those of the checkpoint.

    Raises:
        ValueError: if they are not.
    """
    with ExitStack() as opened:
        saved = _Saved(checkpoint, opened)
        held = {key.removeprefix("model/") for key in saved.keys if key.startswith("model/")}
        for without, having, missing in (
            (checkpoint.folder, "the model", sorted(set(names) - held)),
            ("the model", checkpoint.folder, sorted(held - set(names))),
        ):
            if missing:
                raise ValueError(
                    f"{having} has {missing[0]} and {len(missing) - 1} more that {without} has not: the checkpoint is "
                    "of another model"
                )
        for name in sorted(held):
            yield name, saved.whole(f"model/{name}")


class _Saved:
    """The tensors of all ranks' files, put together; the files stay open until `opened` closes."""

    def __init__(self, checkpoint: Checkpoint, opened: ExitStack) -> None:
        from safetensors import safe_open

        self._folder = checkpoint.folder
        self._files = [
            opened.enter_context(safe_open(checkpoint.folder / _rank_file(rank), "pt"))
            for rank in range(checkpoint.state["ranks"])
        ]
        self._keys = [set(file.keys()) for file in self._files]
        self.keys: set[str] = set().union(*self._keys)

    def whole(self, key: str) -> Tensor:
        """All ranks' parts of one tensor."""
        import torch

        parts = [file.get_tensor(key) for file, keys in zip(self._files, self._keys, strict=True) if key in keys]
        if not parts:
            raise ValueError(f"{self._folder} has nothing for {key}: it is of another model")
        return parts[0] if len(parts) == 1 or parts[0].ndim == 0 else torch.cat(parts)

    def copy(self, key: str, target: Tensor) -> None:
        """Into `target`, or into this rank's part of it."""
        import torch
        from torch.distributed.tensor import DTensor, distribute_tensor

        source = self.whole(key)
        if source.shape != target.shape:
            raise ValueError(
                f"{self._folder} has {key} of shape {list(source.shape)}, the model {list(target.shape)}: it is of "
                "another model"
            )
        with torch.no_grad():
            if isinstance(target, DTensor):
                source = distribute_tensor(
                    source.to(target.device), target.device_mesh, target.placements, src_data_rank=None
                )
            target.copy_(source)


def _write_rank(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """What this rank holds; of a model that every rank holds whole, the first rank writes all."""
    import torch
    from safetensors.torch import save_file

    from atrl.sharding import is_sharded

    tensors: dict[str, Tensor] = {}
    if parallel.rank() == 0 or is_sharded(model):
        names = {id(tensor): name for name, tensor in state_tensors(model)}
        tensors |= {f"model/{name}": _local(tensor) for name, tensor in state_tensors(model)}
        for parameter, entries in optimizer.state.items():
            name = names[id(parameter)]
            tensors |= {f"optimizer/{entry}/{name}": _local(value) for entry, value in entries.items()}
    tensors["random/torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    save_file(tensors, path, metadata=_random_states())


def _load_optimizer(optimizer: Optimizer, model: nn.Module, saved: _Saved) -> None:
    import torch

    names = {id(tensor): name for name, tensor in state_tensors(model)}
    entries = sorted({key.split("/", 2)[1] for key in saved.keys if key.startswith("optimizer/")})
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        state = {}
        for entry in entries:
            key = f"optimizer/{entry}/{names[id(parameter)]}"
            if key not in saved.keys:
                continue  # a parameter that had no gradient yet
            value = saved.whole(key)
            if value.ndim:
                state[entry] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
                saved.copy(key, state[entry])
            else:
                state[entry] = value  # a counter, which optimizers keep in host memory
        if state:
            optimizer.state[parameter] = state


def _local(tensor: Tensor) -> Tensor:
    from atrl.sharding import own_part

    return own_part(tensor.detach()).contiguous().cpu()


def state_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What training may change: parameters and persistent buffers; one that has several names under its first.

    Of a model with adapters, these and the buffers: the rest stays what it was loaded with.
    """
    frozen = has_adapters(model)
    buffers = {name for name, _ in model.named_buffers()}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and not (frozen and not tensor.requires_grad and name not in buffers):
            seen.add(id(tensor))
            yield name, tensor


def _random_states() -> dict[str, str]:
    import numpy

    version, internal, gauss = random.getstate()
    state = numpy.random.get_state()
    assert isinstance(state, tuple), "numpy gives the state of its global generator as a tuple"
    kind, keys, *rest = state
    return {
        "python": json.dumps([version, list(internal), gauss]),
        "numpy": json.dumps([kind, keys.tolist(), *rest]),
    }


def _set_random_states(file) -> None:
    import numpy
    import torch

    torch.set_rng_state(file.get_tensor("random/torch"))
    if torch.cuda.is_available() and "random/cuda" in file.keys():  # noqa: SIM118  no mapping
        torch.cuda.set_rng_state(file.get_tensor("random/cuda"))
    version, internal, gauss = json.loads(file.metadata()["python"])
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = json.loads(file.metadata()["numpy"])
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))


def _rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def _to_disk(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
