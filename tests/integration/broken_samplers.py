"""Samplers that break in the middle of a run where the environment says so, for `test_broken_runs.py`.

`ATRL_BREAK` is "phase:how": in its third call of `phase` the sampler breaks by `how`, a function of this module.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time

from atrl import parallel
from atrl.rollout import watch
from atrl.rollout.transformers import TransformersSampler
from atrl.rollout.vllm import VllmSampler

watch.GRACE_S = 2.0


def hang_without_the_lock() -> None:
    time.sleep(3600)


def hang_with_the_lock() -> None:
    ctypes.PyDLL(None).sleep(3600)


def segmentation_fault() -> None:
    ctypes.string_at(0)


def crash() -> None:
    raise RuntimeError("the engine died")


class Breaking(TransformersSampler):
    """Breaks as the environment says."""

    _calls = 0

    def _called(self, phase: str) -> None:
        wanted, _, how = os.environ.get("ATRL_BREAK", "").partition(":")
        self._calls += phase == wanted
        if phase == wanted and self._calls == 3:
            globals()[how]()

    def generate(self, prompts, sampling, *, seed):
        self._called("generate")
        return super().generate(prompts, sampling, seed=seed)

    def update_weights(self, parameters, version) -> None:
        self._called("update_weights")
        super().update_weights(parameters, version)


class KilledVllm(VllmSampler):
    """In the third call the second rank is killed while the engine that it shares with the first decodes."""

    _calls = 0

    def _answer(self, requests):
        self._calls += 1
        if self._calls == 3 and parallel.rank() == 1:
            engine, steps = self._llm.llm_engine, iter(range(4))
            original = engine.step
            engine.step = lambda: original() if next(steps, None) is not None else os.kill(os.getpid(), signal.SIGKILL)
        return super()._answer(requests)
