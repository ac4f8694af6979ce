"""From the rows of one response to its weights, where the clusters are known beforehand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from atrl.credit import metis
from atrl.credit.clusters import ClusterSettings, TokenRows, partition_all, weigh_all

SETTINGS = ClusterSettings(
    edges="similarity", neighbours=2, num_clusters=2, rank_clusters="peak", weights="anchors",
    anchor_ratio=0.5, anchor_weight=3.0, rest_weight=1.0, seed=0,
)  # fmt: skip
EVEN, ODD = [0, 2, 4], [1, 3, 5]

# Tokens 0, 2 and 4 look at the left of the picture and 1, 3 and 5 at the right. One token of the left reads sharply.
ROWS = TokenRows(
    density=np.array([0.9, 0.5, 0.1, 0.5, 0.1, 0.5], np.float32),
    image=np.array([[1, 0], [0, 1]] * 3, np.float32),
    targets=None,
    strengths=None,
)


@pytest.mark.parametrize(("ranking", "anchors"), [("peak", EVEN), ("mean", ODD)])
def test_the_ranking_decides_which_cluster_comes_first(ranking, anchors):
    """Peaks 0.9 and 0.5; means 1.1/3 and 0.5. Half of six tokens are anchors: the first cluster as a whole."""
    [(weights, chosen)] = weigh_all([ROWS], replace(SETTINGS, rank_clusters=ranking))
    assert np.flatnonzero(chosen).tolist() == anchors
    assert weights.tolist() == [3.0 if token in anchors else 1.0 for token in range(6)]


def test_the_map_of_loads_is_a_function_of_the_cluster():
    """The most loaded cluster gets `anchor_weight` and the least `rest_weight`; anchors are marked all the same."""
    [(weights, chosen)] = weigh_all([ROWS], replace(SETTINGS, weights="load_map", anchor_ratio=1 / 6))
    assert weights.tolist() == [3.0, 1.0] * 3 and np.flatnonzero(chosen).tolist() == [0]


@pytest.mark.parametrize(
    ("wanted", "tokens", "parts"), [(8, 40, 8), (8, 6, 3), (8, 1, 0), ("auto", 50, 7), ("auto", 3, 1)]
)
def test_how_many_parts(wanted, tokens, parts):
    """At least two tokens each; √50 is 7.07, and √3 = 1.7 gives 2, of which three tokens fill one."""
    assert replace(SETTINGS, num_clusters=wanted).clusters(tokens) == parts


def test_edges_are_those_that_were_asked_for():
    """By attention 0 to 2 and 3 to 5 belong together, by what they look at every other token."""
    targets = np.array([[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]])
    rows = replace(ROWS, targets=targets[None], strengths=np.ones((1, 6, 2), np.float32))
    for edges, pair in (("similarity", (0, 2)), ("attention", (3, 5))):
        [parts] = partition_all([rows], replace(SETTINGS, edges=edges))
        assert parts[pair[0]] == parts[pair[1]] and parts[0] != parts[1 if edges == "similarity" else 3]
        assert sorted(np.bincount(parts)) == [3, 3]


def test_the_graph_has_as_many_neighbours_as_were_asked_for(monkeypatch):
    """Every two tokens look alike: each keeps its edges to the first others, and so do these to it."""
    rows = replace(ROWS, image=np.ones((6, 2), np.float32))
    asked, original = [], metis.partition
    monkeypatch.setattr(
        metis, "partition", lambda *graph, **options: asked.append(graph) or original(*graph, **options)
    )
    for neighbours in (1, 2, 5):
        partition_all([rows], replace(SETTINGS, neighbours=neighbours))
    # Of 15 pairs: all with token 0; and with token 1 too; all.
    assert [len(targets) // 2 for _, targets, _ in asked] == [5, 9, 15]


def test_each_response_is_weighed_by_itself():
    short = TokenRows(density=ROWS.density[:2], image=ROWS.image[:2], targets=None, strengths=None)
    single = TokenRows(density=ROWS.density[:1], image=ROWS.image[:1], targets=None, strengths=None)
    responses = (ROWS, single, short)
    for together, alone in zip(weigh_all(responses, SETTINGS), responses, strict=True):
        for found, expected in zip(together, weigh_all([alone], SETTINGS)[0], strict=True):
            assert found.tolist() == expected.tolist()
