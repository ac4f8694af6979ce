"""The top level of ``conf/replay.yaml``."""

from __future__ import annotations

from dataclasses import dataclass

from atrl.sections import at_least


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """Which step of which run is computed again, and how closely it must agree."""

    run: str
    step: int
    tolerance: float = 0.0  # largest difference that still agrees
    sample: bool = False  # also draw the responses again
    verbose: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a step that no run has, or a negative tolerance."""
        at_least("step", self.step, 1, "steps are counted from 1")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must be 0 (bit for bit) or more, got {self.tolerance}")
