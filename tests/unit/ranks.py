"""Runs a function in several processes that form a group, as ranks of one training run do."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any


def run_ranks(function: Callable[..., Any], *arguments: Any, world: int = 2, seconds: float = 120) -> list[Any]:
    """What `function(*arguments)` returns on each rank, over gloo. Fresh interpreters: importable functions only.

    Ranks that wait for each other for ever would hang the tests: after so many `seconds` they are given up.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with multiprocessing.get_context("spawn").Pool(world) as pool:
        calls = [pool.apply_async(_as_rank, (rank, world, port, function, arguments)) for rank in range(world)]
        return [call.get(timeout=seconds) for call in calls]


def _as_rank(rank: int, world: int, port: int, function: Callable[..., Any], arguments: tuple) -> Any:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        return function(*arguments)
    finally:
        dist.barrier()
        dist.destroy_process_group()
