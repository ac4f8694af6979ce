"""How new weights reach a `vllm serve`: through a folder that both see, or over NCCL."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from atrl.rollout.connection import ServerConnection
    from atrl.weight_sync import ParameterForm

Transfer = Literal["folder", "nccl"]

SHARD_BYTES = 2 * 2**30
"""A file is written as soon as it holds so much, so that no more than that is copied in memory."""


class WeightTransfer(Protocol):
    """Moves one set of weights after the other to a server that is paused."""

    def send(self, parameters: Iterable[tuple[str, Tensor]], server: ServerConnection, dtype: str) -> None:
        """Replace the server's weights by `parameters`.

        Args:
            parameters: named as in the transformers model.
            server: to replace them in.
            dtype: of the server's own weights.

        Raises:
            ValueError: in one line, if that fails; the server's weights are then undefined.
        """
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


class SharedFolder:
    """Writes safetensors files, which the server's workers read back.

    Args:
        folder: on a file system that server and trainer see under the same path; None for a new temporary folder, which
            does for a server on the same machine.

    Raises:
        ValueError: if `folder` can't be written to.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._made = folder is None
        self._count = 0
        if folder is None:
            self._root = Path(tempfile.mkdtemp(prefix="atrl-weights-"))
            return
        self._root = Path(folder).expanduser().absolute()
        if not self._root.is_dir():
            raise ValueError(f"rollout.sampler.weights_folder {folder} is not a folder: make it, or correct the path")

    def send(self, parameters: Iterable[tuple[str, Tensor]], server: ServerConnection, dtype: str) -> None:
        """Write, let the server read, delete: a folder under its final name is always complete."""
        self._count += 1
        with tempfile.TemporaryDirectory(prefix="weights-", dir=self._root, ignore_cleanup_errors=True) as work:
            partial, complete = Path(work) / "partial", Path(work) / f"update-{self._count}"
            partial.mkdir()
            try:
                write_weights(parameters, partial, dtype=dtype)
            except OSError as error:
                raise ValueError(
                    f"rollout.sampler.weights_folder {self._root} can't be written to ({error.strerror or error}): "
                    "make room, or choose another"
                ) from error
            partial.rename(complete)
            answers = server.post(
                "/collective_rpc", {"method": "atrl_load_weights", "kwargs": {"folder": str(complete)}}
            )
        check_answers(answers, server, self._root)

    def close(self) -> None:
        """Remove the temporary folder."""
        if self._made:
            shutil.rmtree(self._root, ignore_errors=True)


class NcclBroadcast:
    """Broadcasts weights from GPU to GPU by vLLM's weight-transfer API; the server is on other GPUs than the trainer.

    The server needs ``--weight-transfer-config '{"backend": "nccl"}'``. The API: `NCCLTrainerWeightTransferEngine` in
    ``vllm.distributed.weight_transfer`` and the routes of ``vllm.entrypoints.rl``.

    Args:
        forms: of the parameters that will be sent, in their order: the server makes room by these.
        address: of this machine, as the server reaches it; None asks the network for it.
    """

    def __init__(self, forms: Sequence[ParameterForm], address: str | None = None) -> None:
        self._forms, self._address = forms, address
        self._engine: Any = None
        self._source: Any = None

    def send(self, parameters: Iterable[tuple[str, Tensor]], server: ServerConnection, dtype: str) -> None:
        """Broadcast, and put parameters together on the way; the server casts them to its own dtype.

        No more are held than fill vLLM's two buffers of 1 GiB and are being packed for the next.
        """
        if self._engine is None:
            self._engine = self._connect(server)
        self._source.replace(parameters)
        try:
            _finish_updates()
            self._engine.send_weights()
        except Exception as error:
            raise ValueError(
                f"rollout=server: the weights did not reach {server.url} over NCCL ({type(error).__name__}: "
                f"{' '.join(str(error).split())}): weight_transfer=folder needs nothing but a shared file system"
            ) from error

    def close(self) -> None:
        """Leave the group that broadcasts."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def _connect(self, server: ServerConnection) -> Any:
        import torch

        if not torch.cuda.is_available():
            raise ValueError(
                "rollout.sampler.weight_transfer=nccl needs a CUDA device for the trainer, and torch finds none: use "
                "weight_transfer=folder"
            )
        try:
            from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
            from vllm.utils.network_utils import get_ip, get_open_port
        except ImportError as error:
            raise ValueError(
                f"rollout.sampler.weight_transfer=nccl needs vLLM beside the trainer too ({error}): install "
                "atrl[vllm], or use weight_transfer=folder"
            ) from error
        from atrl.rollout.vllm_nccl import ParameterSource, ServerControl, trainer_init_info

        self._source = ParameterSource(self._forms)
        workers = server.get("/get_world_size")["world_size"]
        info = trainer_init_info(self._address or get_ip(), get_open_port(), workers=workers)
        return WeightTransferTrainerFactory.trainer_init(info, client=ServerControl(server), source=self._source)


def _finish_updates() -> None:
    """vLLM reads parameters in streams of its own, which don't wait for an optimizer's step in this one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()


def write_weights(
    parameters: Iterable[tuple[str, Tensor]], folder: Path, *, dtype: str, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `parameters` in `dtype` to safetensors files of about `shard_bytes`, numbered from 0, in `folder`.

    The server casts to its own dtype anyway: casting here halves a file and changes no bit.

    Raises:
        OSError: if the disk is full or the folder gone.
    """
    import torch
    from safetensors.torch import save_file

    shard: dict[str, Tensor] = {}
    size = number = 0

    def flush() -> None:
        nonlocal shard, size, number
        try:
            save_file(shard, folder / f"weights-{number:05d}.safetensors")
        except Exception as error:  # safetensors raises its own kind for a full disk
            raise OSError(f"{type(error).__name__}: {error}") from error
        shard, size, number = {}, 0, number + 1

    for name, parameter in parameters:
        shard[name] = parameter.detach().to("cpu", getattr(torch, dtype)).contiguous()
        size += shard[name].nbytes
        if size >= shard_bytes:
            flush()
    if shard:
        flush()


def check_answers(answers: Any, server: ServerConnection, folder: Path) -> None:
    """Raises ValueError, in one line, unless every worker of the server took the weights."""
    results = answers["results"] if isinstance(answers, dict) else []
    errors = [result["error"] for result in results if "error" in result]
    if errors or not results:
        cause = errors[0] if errors else "no worker answered"
        raise ValueError(
            f"rollout=server: {server.url} did not take the new weights ({cause}): it must serve the model that is "
            f"trained and see {folder} under the same path; else set rollout.sampler.weights_folder to a shared file "
            "system"
        )


def model_shape(config: Any) -> dict[str, Any]:
    """What tells models apart whose weights can't replace each other, of a transformers configuration."""
    text = config.get_text_config()
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    return {"model_type": config.model_type} | {name: getattr(text, name, None) for name in names}
