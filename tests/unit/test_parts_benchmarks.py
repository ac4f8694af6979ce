"""The sums of `benchmarks/clusters.py` and `continuing.py`, and how kinds of work take turns."""

from __future__ import annotations

import numpy as np
import pytest

from atrl.credit import metis
from atrl.credit.atrl import AtrlCredit
from tests.unit.test_step_benchmark import script, scripts_find_each_other  # noqa: F401


def path_graph(*weights: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes in a line, in compressed rows; an edge of each weight from one to the next."""
    nodes = len(weights) + 1
    edges = [(node, node + step, weights[min(node, node + step)])
             for node in range(nodes) for step in (-1, 1) if 0 <= node + step < nodes]  # fmt: skip
    sources, targets, both = (np.array(column) for column in zip(*edges, strict=True))
    return sources.searchsorted(np.arange(nodes + 1)), targets, both


def test_the_share_that_is_cut_is_of_all_graphs_together():
    """Of 3 + 1 + 4 the middle one is cut, and then all of 2: 3 of 10."""
    graphs, clusters = [path_graph(3, 1, 4), path_graph(2)], [np.array([0, 0, 1, 1]), np.array([1, 0])]
    assert script("clusters").cut_share(graphs, clusters) == pytest.approx(0.3)
    assert script("clusters").cut_share(graphs[:1], [np.zeros(4, int)]) == 0


def test_cuts_are_metis_s_of_as_many_refinements(monkeypatch):
    """The number is METIS's own again afterwards."""
    asked, partition, before = [], metis.partition, metis.REFINEMENTS
    monkeypatch.setattr(metis, "partition", lambda *graph, **options: asked.append((metis.REFINEMENTS, options)) or
                        partition(*graph, **options))  # fmt: skip
    settings = AtrlCredit(num_clusters=2, seed=3).settings
    [found] = script("clusters").cuts([path_graph(3, 1, 4)], settings, 10)
    assert sorted(found.tolist()) == [0, 0, 1, 1] and found[0] == found[1]
    assert asked == [(10, {"num_clusters": 2, "seed": 3})] and before == metis.REFINEMENTS == 1


def test_the_best_call_counts_but_not_the_first(monkeypatch):
    """Calls of `a` take 1, 5 and 3 seconds, of `b` 2, 4 and 6, in turns; the first round is a warm-up."""
    timing, clock, took = script("timing"), [0.0], {"a": [1, 5, 3], "b": [2, 4, 6]}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    called = []

    def call(name: str) -> None:
        called.append(name)
        clock[0] += took[name].pop(0)

    found = timing.best_seconds({name: lambda name=name: call(name) for name in took}, repeats=2)
    assert found == {"a": 3, "b": 4} and called == ["a", "b"] * 3


def test_prompts_are_drawn_from_in_either_way(monkeypatch):
    """Padding to the length asked for, the same number of tokens, and each way by its own class."""
    from atrl.rollout import continuing

    benchmark, taken = script("continuing"), []
    monkeypatch.setattr(benchmark, "TOKENS", 3)
    for kind in (continuing.RepeatedPrompts, continuing.SharedPrompts):
        step = kind.next_column
        monkeypatch.setattr(
            kind, "next_column", lambda self, step=step: taken.append(type(self).__name__) or step(self)
        )
    draws = benchmark.Draws(2, 50)
    draws.draw("copies")
    draws.draw("common")
    assert taken == ["RepeatedPrompts"] * 2 + ["SharedPrompts"] * 2
