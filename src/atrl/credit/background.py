"""Work for processes beside the one that trains."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = 3.0
"""A share is waited for as many times as long as this process would need for it,"""

LEAST_PATIENCE = 0.1
"""but for as many seconds at least, which leave time to hand it over. A process that is closed has as long to end."""


class Background:
    """Runs a function over batches of items: in `workers` processes between `open` and `close`, else in this one.

    The processes are fresh interpreters: a fork could inherit locks of torch's threads. They import the running
    script again, which therefore needs the usual ``if __name__ == "__main__":``. They leave Ctrl-C to this process, and
    end when it does, even if it is killed.

    They take only what everything else leaves idle (Linux's SCHED_IDLE; elsewhere a lower priority), which beside other
    jobs may be next to nothing. So this process waits for a share no longer than `PATIENCE` says, and then works on it
    itself: a function must give the same results in every process.

    Args:
        workers: how many processes; 0 does the work in this one, when it is submitted. "auto" is what `useful_workers`
            says.
        option: the config key that says so, for messages.
    """

    def __init__(self, workers: int | Literal["auto"], *, option: str) -> None:
        self.workers, self._option = workers, option
        self._pool: ProcessPoolExecutor | None = None
        self._seconds_each: float | None = None  # for an item, when this process last worked on some
        self._late: list[Future] = []
        self._processes: set[Any] = set()

    def open(self, prepare: Callable[[], object]) -> None:
        """Start the processes, and `prepare` each: the first batch should not wait for its imports."""
        self.workers = workers = useful_workers() if self.workers == "auto" else self.workers
        if workers and self._pool is None:
            import multiprocessing

            context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
            self._pool = ProcessPoolExecutor(workers, context, _enter_worker, (prepare,))
            try:
                list(self._pool.map(abs, range(workers)))
            except BrokenExecutor as error:
                self.close()
                raise RuntimeError(
                    f"no worker process could be started: see its message above, begin the running script's work under "
                    f"`if __name__ == '__main__':`, or set {self._option}=0"
                ) from error
            self._processes = set(multiprocessing.active_children()) - others

    @property
    def is_open(self) -> bool:
        """Whether work that is submitted now is done in other processes."""
        return self._pool is not None

    def close(self) -> None:
        """Stop the processes, also in the middle of a share: nobody waits for it any more."""
        import threading

        pool, self._pool = self._pool, None
        if pool is not None:
            impatience = threading.Timer(LEAST_PATIENCE, self._terminate)
            impatience.start()
            pool.shutdown(cancel_futures=True)
            impatience.cancel()

    def _terminate(self) -> None:
        for process in self._processes:
            process.terminate()

    def submit(
        self, function: Callable[..., list[Result]], items: Sequence[Item], *arguments: Any
    ) -> Callable[[], list[Result]]:
        """Start ``function(share, *arguments)`` for a share of `items` per process; the returned call waits for all.

        The first items are worked on here, and so are those that come while a process is still busy with a late share.

        Raises:
            RuntimeError: from either call, if a process died.
        """

        def work(share: Sequence[Item]) -> list[Result]:
            start = time.perf_counter()
            results = function(share, *arguments)
            self._seconds_each = (time.perf_counter() - start) / len(share)
            return results

        if not items:
            return lambda: []
        self._late = [future for future in self._late if not future.done()]
        if self._pool is None or self._late or self._seconds_each is None:
            done = work(items)
            return lambda: done
        assert isinstance(self.workers, int), "an open pool has a number of processes"
        size = -(-len(items) // self.workers)
        shares = [list(items[start : start + size]) for start in range(0, len(items), size)]
        with self._death_named():
            futures = [self._pool.submit(function, share, *arguments) for share in shares]

        def collect() -> list[Result]:
            results: list[Result] = []
            for share, future in zip(shares, futures, strict=True):
                if wait([future], self.patience(len(share))).done:
                    with self._death_named():
                        results += future.result()
                else:
                    if not future.cancel():
                        self._late.append(future)
                    results += work(share)
            return results

        return collect

    def patience(self, items: int) -> float:
        """Seconds to wait for a share of as many `items`."""
        assert self._seconds_each is not None, "the first items are worked on in this process"
        return max(LEAST_PATIENCE, PATIENCE * self._seconds_each * items)

    @contextmanager
    def _death_named(self) -> Iterator[None]:
        try:
            yield
        except BrokenExecutor as error:
            raise RuntimeError(
                f"a worker process died (out of memory?): {self._option}=0 does its work in the training process"
            ) from error


def useful_workers() -> int:
    """One for each core that training leaves alone, at most four; one of two or more cores that all train; else none.

    All that this rank may have are left alone but torch's threads, or but one beside a GPU; it shares them with the
    ranks on the same machine that may run on them too. On cores that train a single process still fills the gaps in
    which torch's threads wait for each other; more would take from the training what they give (`docs/benchmarks.md`).
    """
    import torch

    from atrl import parallel  # not above: worker processes import this file, and need no torch

    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    own = affinity(0) if affinity else set(range(os.cpu_count() or 1))
    ranks = parallel.gather((platform.node(), own))
    cores = len(own) // sum(node == platform.node() and not own.isdisjoint(theirs) for node, theirs in ranks)
    busy = 1 if torch.cuda.is_available() else torch.get_num_threads()
    return min(4, max(cores - busy, 1 if cores > 1 else 0))


def _enter_worker(prepare: Callable[[], object]) -> None:
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches workers too; `close` ends them
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare()  # before it gives way: `open` waits for this
    _give_way()


def _give_way() -> None:
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):  # not Linux, or a sandbox without it
        if hasattr(os, "nice"):  # not on Windows
            os.nice(10)


def _end_with_parent() -> None:
    # A killed parent closes nothing: its workers would wait for work for ever.
    import multiprocessing

    multiprocessing.parent_process().join()
    os._exit(1)
