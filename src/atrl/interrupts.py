"""What ends a run from outside: Ctrl-C, or a signal of the system or of a cluster's scheduler."""

from __future__ import annotations

import signal

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""SIGUSR1 is what SLURM users ask for ahead of the time limit (``#SBATCH --signal=USR1@120``)."""


def spoken(number: int) -> str:
    """What users call the signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


class Interrupted(BaseException):
    """The run was told to end, and did; the message is for the user.

    No `Exception`: code on the way that catches these would take it for a failure of its own, as it would Ctrl-C.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {spoken(number)}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell reports it for a program that the signal ended: the run is not done."""
        return 128 + self.number
