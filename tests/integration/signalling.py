"""A callback that sends its own run signals, at a moment that no clock decides."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from lightning import Callback

from atrl import parallel


class Signalling(Callback):
    """Sends the first process `signals` in the call of `hook` that is its `step`-th; once in `folder`.

    Args:
        hook: of Lightning's callbacks, one that is called once a step.
        signals: their names.
        step: counted from 1.
        folder: a file in it says that they were sent, so that the run that goes on is left alone.
    """

    def __init__(self, hook: str, signals: Sequence[str], step: int, folder: str) -> None:
        setattr(self, hook, self._count)
        self._signals, self._step, self._sent = list(signals), step, Path(folder) / "sent"
        self._calls = 0

    def _count(self, *_) -> None:
        self._calls += 1
        if self._calls == self._step and parallel.rank() == 0 and not self._sent.exists():
            self._sent.touch()
            for name in self._signals:
                os.kill(os.getpid(), signal.Signals[name])
