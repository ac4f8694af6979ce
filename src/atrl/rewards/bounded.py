"""What the parts have in common that read mathematics in worker processes, within limits."""

from __future__ import annotations

from atrl.rewards import math_worker
from atrl.rewards.base import RewardPart
from atrl.rewards.workers import KillableWorkers


class BoundedPart(RewardPart):
    """Owns the worker processes, which start with the first answer.

    Args:
        weight: factor of this part in the reward.
        cpu_seconds: processor time for one answer.
        memory_gib: what a worker may take for it, in GiB above its size at the start.
        workers: how many processes.

    Raises:
        ValueError: if a limit is not positive.
    """

    def __init__(
        self, *, weight: float = 1.0, cpu_seconds: float = 2.0, memory_gib: float = 1.0, workers: int = 2
    ) -> None:
        super().__init__(weight=weight)
        for key, value in {"cpu_seconds": cpu_seconds, "memory_gib": memory_gib, "workers": workers}.items():
            if not value > 0:
                raise ValueError(f"reward.parts.{self.name}.{key} must be > 0, got {value}: leave it at its default")
        self.cpu_seconds, self.memory_gib = cpu_seconds, memory_gib
        self._workers = KillableWorkers(
            workers=workers,
            cpu_seconds=cpu_seconds,
            memory_bytes=int(memory_gib * 2**30),
            prepare=math_worker.prepare,
        )

    def close(self) -> None:
        """Stop the worker processes; the next call starts new ones."""
        self._workers.close()
