"""Random draws that are made again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Where torch's generators stood: what is drawn `again` from there is what was drawn then."""

    device: torch.device
    on_cpu: UInt8[Tensor, "byte"]
    on_device: UInt8[Tensor, "byte"] | None
    """None where `device` is the CPU."""

    @classmethod
    def of(cls, device: torch.device) -> Draws:
        """Where they stand now; on a GPU asking waits for nothing, since its generator counts on the host."""
        return cls(device, torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw from there; afterwards the generators stand where they did before."""
        with torch.random.fork_rng([] if self.on_device is None else [self.device]):
            torch.set_rng_state(self.on_cpu)
            if self.on_device is not None:
                torch.cuda.set_rng_state(self.on_device, self.device)
            yield
