"""Worker processes for code that may hang, crash or eat the memory on hostile input."""

from __future__ import annotations

import atexit
import multiprocessing
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pebble import ProcessFuture, ProcessPool

Result = TypeVar("Result")

_ATTEMPTS = 3
_CHUNK = 32


class KillableWorkers:
    """Runs calls in worker processes, each call within a time and memory limit.

    A worker that runs out of time is killed and replaced. The limit counts processor time, because a busy
    machine must not change results; a call that waits without computing is ended by the clock, later. Calls travel
    in chunks, each under a timer of its own; where a chunk's worker dies its calls run again one by one. Workers
    start with the first call and stay until `close` or the interpreter's exit. Each is a fresh interpreter,
    never a fork of this process, which may hold locks of torch or vLLM threads; it imports the running script
    again, which therefore needs the usual ``if __name__ == "__main__":`` and had better import heavy packages
    below it.

    Args:
        workers: how many processes.
        cpu_seconds: processor time of one call.
        wall_seconds: clock time of one call; None is ten times `cpu_seconds`.
        memory_bytes: address space that a worker may take above what it has at its start (Linux only).
        prepare: called once in every new worker, outside the limits: the place for slow imports.
    """

    def __init__(
        self,
        *,
        workers: int,
        cpu_seconds: float,
        memory_bytes: int,
        wall_seconds: float | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self.workers = workers
        self.cpu_seconds = cpu_seconds
        self.wall_seconds = 10 * cpu_seconds if wall_seconds is None else wall_seconds
        self.memory_bytes = memory_bytes
        self.prepare = prepare
        self._pool: ProcessPool | None = None

    def run(self, function: Callable[..., Result], calls: Sequence[tuple[Any, ...]]) -> list[Result | None]:
        """``function(*call)`` for every call, in order; None where it raised, died or broke a limit.

        `function`, arguments and results must be picklable.
        """
        results: dict[int, Result | None] = {}
        size = min(_CHUNK, -(-len(calls) // (2 * self.workers)))
        if size > 1:
            self._run_chunks(function, calls, size, results)
        self._run_singly(function, calls, results)
        return [results.get(i) for i in range(len(calls))]

    def _run_chunks(
        self,
        function: Callable[..., Result],
        calls: Sequence[tuple[Any, ...]],
        size: int,
        results: dict[int, Result | None],
    ) -> None:
        """Fills in `results` but for chunks that lost their worker."""
        pool = self._pool or self._start()
        chunks = [range(start, min(start + size, len(calls))) for start in range(0, len(calls), size)]
        try:
            futures = [
                self._schedule(pool, _call_all, function, [calls[i] for i in chunk], self.cpu_seconds)
                for chunk in chunks
            ]
            for chunk, future in zip(chunks, futures, strict=True):
                if future.exception() is None:
                    results.update(zip(chunk, future.result(), strict=True))
        except RuntimeError:  # the pool broke as it was given a call
            self.close()

    def _run_singly(
        self, function: Callable[..., Result], calls: Sequence[tuple[Any, ...]], results: dict[int, Result | None]
    ) -> None:
        """Fills in what is missing in `results`, each call by itself."""
        for _ in range(_ATTEMPTS):
            open_calls = [i for i in range(len(calls)) if i not in results]
            if not open_calls:
                break
            pool = self._pool or self._start()
            try:
                futures = {i: self._schedule(pool, _call, function, calls[i], self.cpu_seconds) for i in open_calls}
                for i, future in futures.items():
                    results[i] = _result(future)
            except RuntimeError:  # a worker died between calls: start over with the rest
                self.close()

    def close(self) -> None:
        """Stop the workers; the next `run` starts new ones."""
        atexit.unregister(self.close)
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()
            pool.join()

    def _start(self) -> ProcessPool:
        from pebble import ProcessPool

        self._pool = ProcessPool(
            max_workers=self.workers,
            initializer=_enter_worker,
            initargs=(self.memory_bytes, self.prepare),
            context=multiprocessing.get_context("spawn"),
        )
        atexit.register(self.close)  # before pebble's own, which lets workers start while it stops them
        try:
            self._pool.schedule(int).result()
        except RuntimeError as error:
            self.close()
            raise RuntimeError(
                "no worker process could be started: see its message above, and let the running script "
                "begin its work under `if __name__ == '__main__':`"
            ) from error
        return self._pool

    def _schedule(self, pool: ProcessPool, runner: Callable[..., Any], *arguments: Any) -> ProcessFuture:
        return pool.schedule(runner, args=arguments, timeout=self.wall_seconds)


def _result(future: ProcessFuture) -> Any:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise error
    return None if error else future.result()


def _enter_worker(memory_bytes: int, prepare: Callable[[], object] | None) -> None:
    """In the worker: load what the calls need, then fix the memory limit."""
    import psutil

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a Python handler would wait for the operation to end
    if prepare is not None:
        prepare()
    if sys.platform == "linux":  # elsewhere RLIMIT_AS is refused or ignored
        limit = psutil.Process().memory_info().vms + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _call(function: Callable[..., Result], call: tuple[Any, ...], cpu_seconds: float) -> Result:
    """In the worker: the call, under a timer at whose end the kernel kills the process, even amid C code."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        return function(*call)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _call_all(
    function: Callable[..., Result], calls: Sequence[tuple[Any, ...]], cpu_seconds: float
) -> list[Result | None]:
    """In the worker: all of a chunk, each call under its own timer; None where one raised."""
    return [_call_or_none(function, call, cpu_seconds) for call in calls]


def _call_or_none(function: Callable[..., Result], call: tuple[Any, ...], cpu_seconds: float) -> Result | None:
    try:
        return _call(function, call, cpu_seconds)
    except Exception:
        return None
