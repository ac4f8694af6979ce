"""Cutting token graphs into clusters with METIS, here or in worker processes; the only file that imports it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph in compressed rows, and into how many parts it is to be cut; each edge stands in both of its rows."""

    starts: list[int]
    targets: list[int]
    weights: list[int]
    num_clusters: int


def partition(graph: Graph, *, seed: int = 0) -> list[int]:
    """A cluster id for every node: about equal sizes, least weight of the edges cut.

    METIS: Karypis & Kumar, SIAM J. Sci. Comput. 20(1), 1998. Recursive bisection is asked for explicitly: pymetis
    would otherwise change to k-way above eight parts, in the middle of an ablation over their number. One cluster or
    an edgeless graph needs no METIS; the latter is cut into runs of consecutive nodes.
    """
    nodes = len(graph.starts) - 1
    if graph.num_clusters <= 1:
        return [0] * nodes
    if not graph.targets:
        return [node * graph.num_clusters // nodes for node in range(nodes)]
    import pymetis

    _, membership = pymetis.part_graph(
        graph.num_clusters,
        adjacency=pymetis.CSRAdjacency(graph.starts, graph.targets),
        eweights=graph.weights,
        recursive=True,
        options=pymetis.Options(seed=seed),
    )
    return list(membership)


class Partitioner:
    """Partitions batches of graphs: in `workers` processes between `open` and `close`, else in this one.

    METIS holds the interpreter's lock, so threads would not help. The processes are fresh interpreters: a fork could
    inherit locks of torch's threads.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def open(self) -> None:
        """Start the processes and wait until they are ready: the first batch should not pay for it."""
        if self.workers and self._pool is None:
            import multiprocessing

            self._pool = ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"), _warm_up)
            list(self._pool.map(abs, range(self.workers)))

    def close(self) -> None:
        """Stop the processes."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def submit(self, graphs: Sequence[Graph], *, seed: int) -> Callable[[], list[list[int]]]:
        """Start; the returned call waits for the cluster ids of every graph, in order.

        Raises:
            RuntimeError: from that call, if a worker process died.
        """
        if self._pool is None or not graphs:
            done = [partition(graph, seed=seed) for graph in graphs]
            return lambda: done
        share = -(-len(graphs) // self.workers)
        futures = [
            self._pool.submit(_partition_all, list(graphs[start : start + share]), seed)
            for start in range(0, len(graphs), share)
        ]
        return lambda: _collect(futures)


def _collect(futures: Sequence[Future[list[list[int]]]]) -> list[list[int]]:
    from concurrent.futures.process import BrokenProcessPool

    try:
        return [membership for future in futures for membership in future.result()]
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process that clusters tokens died (out of memory?): credit.workers=0 clusters in the training process"
        ) from error


def _partition_all(graphs: Sequence[Graph], seed: int) -> list[list[int]]:
    return [partition(graph, seed=seed) for graph in graphs]


def _warm_up() -> None:
    """In a new worker: the import that every call needs."""
    import pymetis  # noqa: F401
