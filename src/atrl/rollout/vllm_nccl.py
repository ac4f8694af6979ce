"""The trainer's side of vLLM's weight transfer over NCCL: what to send, and how to steer the server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from atrl.rollout.connection import ServerConnection
from atrl.weight_sync import ParameterForm


class ParameterSource(WeightSource):
    """The parameters of one update after the other; vLLM's engine keeps the source and asks it again for each.

    Args:
        forms: of the parameters, in their order: the workers make room by these before anything is put together.
        device: that broadcasts. Parameters may be elsewhere: before training has begun, the policy is on the CPU.
    """

    def __init__(self, forms: Sequence[ParameterForm], device: str = "cuda") -> None:
        self._device = device
        self._forms = forms
        self._parameters: Iterator[tuple[str, Tensor]] = iter(())

    def replace(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """What the next update sends, once."""
        self._parameters = iter(parameters)

    def metadata(self) -> list[ParamMeta]:
        """Name, dtype and shape of each, in the order of iteration."""
        return [ParamMeta(name, dtype, tuple(shape)) for name, dtype, shape in self._forms]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor.to(self._device)) for name, tensor in self._parameters)


class ServerControl:
    """vLLM's `VLLMWeightSyncClient` over our connection; without retries, because a broadcast can't be joined twice."""

    def __init__(self, server: ServerConnection) -> None:
        self._server = replace(server, retries=0)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have the workers join the trainer's group."""
        self._server.post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        """Make the workers ready to load."""
        self._server.post("/start_weight_update")

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Have the workers receive; returns when they have."""
        self._server.post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Put the loaded weights to use. The version is the sampler's to set, once the caches are dropped too."""
        self._server.post("/finish_weight_update", {"weight_version": weight_version})


def trainer_init_info(address: str, port: int, *, workers: int) -> NCCLTrainerInitInfo:
    """The group: this trainer as rank 0, then the server's workers."""
    return NCCLTrainerInitInfo(master_address=address, master_port=port, world_size=workers + 1, rank=0)
