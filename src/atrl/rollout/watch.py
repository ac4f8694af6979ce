"""A sampler under watch: a call that does not return in time ends the run, with the cause named."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from atrl.rollout.base import ModelHandle, Sampler, Sampling
from atrl.types import Prompt, RolloutGroup

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

EXIT_HUNG = 75
"""The exit code of a run whose sampler hung: EX_TEMPFAIL of sysexits.h, "try again later"."""

GRACE_S = 60.0
"""So long after the time limit the process is ended even if no Python code can run any more."""

RESCUE_S = 900.0
"""So long may saving what can be saved take, once a call has hung."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How long a call may take, and what happens then.

    A thread waits beside the call. When time is up it writes every thread's traceback to `traceback_file`, calls
    `rescue`, logs one line and ends the process, which nothing else can do: a thread that waits in C code can't be
    interrupted. Where the call keeps Python's lock no thread runs at all; `faulthandler`, which needs none, then prints
    the tracebacks to stderr and ends the process with code 1.

    Args:
        seconds: of one call.
        traceback_file: written only when a call hangs.
        rescue: saves what can be saved, and says in a few words what that was.
    """

    seconds: float
    traceback_file: Path
    rescue: Callable[[], str]

    @contextmanager
    def over(self, what: str, *, times: float = 1.0) -> Iterator[None]:
        """Give the block `times` the usual seconds; `what` names it in the message."""
        seconds = self.seconds * max(1.0, times)
        done = threading.Event()
        monitor = threading.Thread(target=self._wait, args=(what, seconds, done), name="atrl-watch", daemon=True)
        faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True, file=sys.__stderr__)
        monitor.start()
        try:
            yield
        finally:
            done.set()
            monitor.join()  # for ever if time is up: the policy is being saved then and must not move on
            faulthandler.cancel_dump_traceback_later()

    def _wait(self, what: str, seconds: float, done: threading.Event) -> None:
        if not done.wait(seconds):
            self._end(what, seconds)

    def _end(self, what: str, seconds: float) -> None:
        try:
            faulthandler.dump_traceback_later(RESCUE_S, exit=True, file=sys.__stderr__)
            with self.traceback_file.open("w", encoding="utf-8") as file:
                file.write(f"{what} did not return in {seconds:g} s\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            saved = self.rescue()
        except Exception as error:  # whatever it is, the process must end
            saved = f"saving failed ({type(error).__name__}: {error})"
        try:
            log.critical(
                "%s did not return in %g s, so the run is ended; %s. Where it hung is in %s. If it was only slow, "
                "raise rollout.timeout_s",
                what, seconds, saved, self.traceback_file,
            )  # fmt: skip
            for child in psutil.Process().children(recursive=True):  # workers, other ranks: nobody would tell them
                child.terminate()
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(EXIT_HUNG)


@dataclass(frozen=True, kw_only=True)
class WatchedSampler:
    """`sampler`, each call of which is watched.

    Args:
        sampler: any.
        watch: how long a call may take.
        usual_rollouts: so many are asked for in a training step; a call for more gets more time in proportion.
    """

    sampler: Sampler
    watch: Watch
    usual_rollouts: int

    @property
    def name(self) -> str:
        """Of the sampler."""
        return self.sampler.name

    def start(self, handle: ModelHandle) -> None:
        """As the sampler's."""
        with self.watch.over(f"rollout={self.name}: starting on {handle.folder}"):
            self.sampler.start(handle)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: str) -> list[RolloutGroup]:
        """As the sampler's."""
        first = f" (the first is problem {prompts[0].problem.id})" if prompts else ""
        what = f"generating {sampling.group_size} responses to each of {len(prompts)} prompts{first}"
        times = len(prompts) * sampling.group_size / self.usual_rollouts
        with self.watch.over(f"rollout={self.name}: {what}", times=times):
            return self.sampler.generate(prompts, sampling, seed=seed)

    def rest(self) -> None:
        """As the sampler's."""
        with self.watch.over(f"rollout={self.name}: going to rest"):
            self.sampler.rest()

    def update_weights(self, parameters: Iterable[tuple[str, Tensor]], version: int) -> None:
        """As the sampler's."""
        with self.watch.over(f"rollout={self.name}: taking over the weights of step {version}"):
            self.sampler.update_weights(parameters, version)

    def close(self) -> None:
        """As the sampler's."""
        with self.watch.over(f"rollout={self.name}: closing"):
            self.sampler.close()
