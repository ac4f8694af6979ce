"""Edges, nearest neighbours and METIS on graphs whose answer is plain."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from operator import mul

import numpy as np
import pytest

from atrl.credit.graph import attention_strengths, combined, nearest_neighbours, similarity_strengths
from atrl.credit.metis import partition
from tests.unit.test_step_benchmark import script

TARGETS = np.array([[[1, 2], [0, 2], [1, 0]], [[1, 2], [0, 2], [0, 1]]])
STRENGTHS = np.array([[[0, 0], [0.05, 0], [0.3, 0.02]], [[0, 0], [0.15, 0], [0.08, 0]]], np.float32)
"""Each of three tokens sees those before it, in two layers: pairs 01, 02 and 12 of 0.2, 0.1 and 0.3 in all."""
IMAGE = np.array([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]], np.float32) / 10
"""Cosine of tokens 0 and 1: (12 + 12)/25 = 0.96; token 2 reads nothing."""


def matrix(first: float, second: float, third: float) -> np.ndarray:
    """Symmetric strengths of the pairs 01, 02 and 12."""
    return np.array([[0, first, second], [first, 0, third], [second, third, 0]], np.float32)


def random_strengths(tokens: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).random((tokens, tokens), np.float32)
    return combined([np.maximum(values, values.T)])


def test_attention_strengths_by_hand():
    np.testing.assert_allclose(attention_strengths(TARGETS, STRENGTHS), matrix(0.2, 0.1, 0.3), rtol=1e-6)


def test_what_a_layer_did_not_keep_is_not_added():
    """Of one edge a token: token 2's to 0 in the first layer is not there, in the second it is."""
    np.testing.assert_allclose(
        attention_strengths(TARGETS[:, :, :1], STRENGTHS[:, :, :1]), matrix(0.2, 0.08, 0.3), rtol=1e-6
    )


def test_both_directions_of_an_edge_are_added_up():
    """Where tokens also see those behind them."""
    both = np.where(STRENGTHS > 0, STRENGTHS, np.float32(0.5))
    np.testing.assert_allclose(attention_strengths(TARGETS, both), matrix(1.2, 1.1, 1.8), rtol=1e-6)


def test_edges_into_the_padding_are_dropped():
    targets = np.where((TARGETS == 0) & np.isclose(STRENGTHS, 0.02), 3, TARGETS)
    np.testing.assert_allclose(attention_strengths(targets, STRENGTHS), matrix(0.2, 0.08, 0.3), rtol=1e-6)


def test_similarity_strengths_by_hand():
    """Each row that reads anything is like itself."""
    np.testing.assert_allclose(
        similarity_strengths(IMAGE), matrix(0.96, 0.0, 0.0) + np.diag([1.0, 1.0, 0.0]), atol=1e-6
    )


@pytest.mark.parametrize(("tokens", "images"), [(5, 1), (7, 60), (12, 700)])
def test_similarity_strengths_are_exact_sums(tokens, images):
    """Of whole numbers, here Python's; adding float32 cosines would be off by a rounding, in this order or another."""
    image = np.random.default_rng(images).random((tokens, images), np.float32) ** 4
    rows = image / np.linalg.norm(image, axis=1, keepdims=True)
    whole = [[round(float(entry) * 2**26) for entry in row] for row in rows]
    expected = [[sum(map(mul, first, second)) / 2**52 for second in whole] for first in whole]
    assert np.array_equal(similarity_strengths(image), np.array(expected).astype(np.float32))
    np.testing.assert_allclose(expected, rows.astype(float) @ rows.T.astype(float), atol=1e-7)


@pytest.mark.parametrize("scale", [1e-15, 1e-19, 1e-20, 1e-23, 1e-25, 1e-36, 1e-40])
def test_similarity_strengths_of_rows_whose_squares_underflow(scale):
    """(3, 4), (4, 3) and (5, 12)/13 in tiny masses, beside an empty row and one of (0, 1): cosines as at any length."""
    tiny = np.array([[3, 4], [4, 3], [5 / 13, 12 / 13]]) * scale
    image = np.vstack([tiny, [[0, 0], [0, 1]]]).astype(np.float32)
    expected = [
        [1, 24 / 25, 63 / 65, 0, 4 / 5],
        [24 / 25, 1, 56 / 65, 0, 3 / 5],
        [63 / 65, 56 / 65, 1, 0, 12 / 13],
        [0, 0, 0, 0, 0],
        [4 / 5, 3 / 5, 12 / 13, 0, 1],
    ]
    rounding = max(1e-6, 2**-149 / scale)  # of the masses themselves, where they are subnormal
    np.testing.assert_allclose(similarity_strengths(image), expected, atol=rounding)


def test_many_faint_masses_add_up():
    """Each of 4096 squares keeps eleven binary digits, and their sum is a normal number: that alone won't do."""
    image = np.full((1, 4096), 1.02 * 2**-69, np.float32)
    np.testing.assert_allclose(similarity_strengths(image), [[1]], atol=1e-6)


def test_faint_rows_change_no_other_row():
    """To the bit, also where the others' norms, 2⁻⁵⁵, are near theirs."""
    image = np.random.default_rng(1).random((20, 300), np.float32)
    image[:10] *= np.float32(2**-55) / np.linalg.norm(image[:10], axis=1, keepdims=True)
    alone = similarity_strengths(image)
    beside = similarity_strengths(np.vstack([image, image[10:] * np.float32(1e-22)]))
    rows = image / np.linalg.norm(image, axis=1, keepdims=True)
    steps = np.rint(rows * np.float32(2**26)).astype(float)
    assert np.array_equal(alone, (steps @ steps.T / 2**52).astype(np.float32))
    assert np.array_equal(beside[:20, :20], alone)


def test_a_faint_row_may_be_negative():
    """As cosines are, which clusters of `query_key_cosine` go by."""
    image = np.array([[-3, -4], [-4, 3], [0, 1]], np.float32) * np.array([[1e-25], [1e-25], [1]], np.float32)
    expected = [[1, 0, -0.8], [0, 1, 0.6], [-0.8, 0.6, 1]]
    np.testing.assert_allclose(similarity_strengths(image), expected, atol=1e-6)


@pytest.mark.parametrize("kernels", [None, "Haswell"])
def test_similarity_strengths_do_not_depend_on_the_number_of_threads(kernels):
    """Worker processes have one and the training has all. Without AVX-512 OpenBLAS adds float32 in another order."""
    benchmark = script("thread_bits")
    one, two = (benchmark.in_threads(count, 30, kernels)["similarity_strengths"] for count in (1, 2))
    assert one == two and len(set(one)) == 30


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["attention"], (2 / 3, 1 / 3, 1.0)),
        (["similarity"], (1.0, 0.0, 0.0)),  # 0.96 over the largest, itself
        (["attention", "similarity"], (5 / 6, 1 / 6, 1 / 2)),
    ],
)
def test_combined_strengths_by_hand(parts, expected):
    given = {"attention": attention_strengths(TARGETS, STRENGTHS), "similarity": similarity_strengths(IMAGE)}
    before = {name: part.copy() for name, part in given.items()}
    np.testing.assert_allclose(combined([given[name] for name in parts]), matrix(*expected), rtol=1e-6)
    assert all(np.array_equal(given[name], before[name]) for name in given)


@pytest.mark.parametrize("seed", range(5))
def test_strengths_are_symmetric_with_a_zero_diagonal(seed):
    """Exactly: METIS takes the two copies of an edge for one. An odd size makes the matrix product round unevenly."""
    generator = np.random.default_rng(seed)
    tokens = 7 + 13 * seed
    targets = np.argsort(generator.random((3, tokens, tokens)), axis=2)[..., :4]
    parts = [
        attention_strengths(targets, generator.random((3, tokens, 4), np.float32)),
        similarity_strengths(generator.random((tokens, 11), np.float32)),
    ]
    for strengths in (combined(parts[:1]), combined(parts[1:]), combined(parts)):
        assert np.array_equal(strengths, strengths.T)
        assert (strengths.diagonal() == 0).all() and (strengths >= 0).all() and strengths.max() <= 1


def test_no_attention_and_no_picture_give_no_edges():
    nothing = [attention_strengths(TARGETS, 0 * STRENGTHS), similarity_strengths(np.zeros((3, 0), np.float32))]
    strengths = combined(nothing)
    assert np.array_equal(strengths, np.zeros((3, 3)))
    assert listed(strengths, neighbours=2) == ([0, 0, 0, 0], [], [])


def listed(strengths: np.ndarray, *, neighbours: int) -> tuple[list[int], list[int], list[int]]:
    starts, targets, weights = nearest_neighbours(strengths, neighbours=neighbours)
    return starts.tolist(), targets.tolist(), weights.tolist()


FOUR = np.array([[0, 0.9, 0.5, 0.1], [0.9, 0, 0.4, 0.3], [0.5, 0.4, 0, 0.2], [0.1, 0.3, 0.2, 0]])


def test_one_neighbour_of_four_nodes():
    """0 and 1 choose each other, 2 chooses 0 and 3 chooses 1; weights 1 + 999·s/0.9: 1000, 556 and 334."""
    starts, targets, weights = listed(FOUR, neighbours=1)
    assert starts == [0, 2, 4, 5, 6]
    assert targets == [1, 2, 0, 3, 0, 1]
    assert weights == [1000, 556, 1000, 334, 556, 334]


def test_two_neighbours_of_four_nodes():
    """0: 1, 2. 1: 0, 2. 2: 0, 1. 3: 1, 2. So only the pair 03 is missing."""
    starts, targets, _ = listed(FOUR, neighbours=2)
    assert starts == [0, 2, 5, 8, 10]
    assert targets == [1, 2, 0, 2, 3, 0, 1, 3, 1, 2]


def test_ties_go_to_the_lower_index():
    """Every node chooses node 0, and node 0 chooses node 1."""
    starts, targets, weights = listed(np.ones((4, 4)) - np.eye(4), neighbours=1)
    assert (starts, targets, weights) == ([0, 3, 4, 5, 6], [1, 2, 3, 0, 0, 0], [1000] * 6)


def test_a_faint_edge_weighs_one_and_none_is_none():
    strengths = np.array([[0, 1.0, 1e-9], [1.0, 0, 0], [1e-9, 0, 0]])
    assert listed(strengths, neighbours=5) == ([0, 2, 3, 4], [1, 2, 0, 0], [1000, 1, 1000, 1])


def test_a_single_token_has_no_edges():
    assert listed(np.zeros((1, 1)), neighbours=8) == ([0, 0], [], [])


@pytest.mark.parametrize(("tokens", "neighbours"), [(2, 1), (9, 3), (40, 8), (40, 100)])
def test_the_compressed_rows_are_a_valid_undirected_graph(tokens, neighbours):
    strengths = random_strengths(tokens, seed=tokens)
    starts, targets, weights = listed(strengths, neighbours=neighbours)
    assert len(starts) == tokens + 1 and starts[0] == 0 and starts[-1] == len(targets) == len(weights)
    edges = {}
    for node in range(tokens):
        row = targets[starts[node] : starts[node + 1]]
        assert len(row) == len(set(row)) >= min(neighbours, tokens - 1) and node not in row
        edges |= {(node, target): weights[starts[node] + place] for place, target in enumerate(row)}
    assert all(edges[b, a] == weight >= 1 and isinstance(weight, int) for (a, b), weight in edges.items())


def graph(nodes: int, edges: dict[tuple[int, int], int]) -> tuple[list[int], list[int], list[int]]:
    rows = [
        sorted((b if a == node else a, weight) for (a, b), weight in edges.items() if node in (a, b))
        for node in range(nodes)
    ]
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(row))
    return starts, [target for row in rows for target, _ in row], [weight for row in rows for _, weight in row]


def cliques(*members: list[int]) -> dict[tuple[int, int], int]:
    return {pair: 1000 for clique in members for pair in combinations(clique, 2)}


def test_two_cliques_are_separated():
    """Interleaved, so that no order of the nodes gives it away; one faint edge joins them."""
    even, odd = list(range(0, 12, 2)), list(range(1, 12, 2))
    clusters = partition(*graph(12, cliques(even, odd) | {(4, 5): 1}), num_clusters=2)
    assert len({clusters[node] for node in even}) == len({clusters[node] for node in odd}) == 1
    assert clusters[0] != clusters[1]


def test_the_weights_decide_which_edges_are_cut():
    """A ring of four: the cheap pair of opposite edges is cut, whichever it is."""
    for heavy in (0, 1):
        ring = {(0, 1): 1, (1, 2): 1, (2, 3): 1, (0, 3): 1}
        ring |= {(0, 1): 1000, (2, 3): 1000} if heavy == 0 else {(1, 2): 1000, (0, 3): 1000}
        clusters = partition(*graph(4, ring), num_clusters=2)
        together = {frozenset(pair) for pair in combinations(range(4), 2) if clusters[pair[0]] == clusters[pair[1]]}
        assert together == (
            {frozenset({0, 1}), frozenset({2, 3})} if heavy == 0 else {frozenset({1, 2}), frozenset({0, 3})}
        )


def random_graph(nodes: int) -> tuple[list[int], list[int], list[int]]:
    strengths = random_strengths(nodes, seed=nodes)
    return listed(strengths, neighbours=8)


@pytest.mark.parametrize(("nodes", "num_clusters"), [(52, 8), (52, 9), (52, 16), (200, 32), (20, 10), (4, 2)])
def test_parts_are_balanced(nodes, num_clusters):
    """METIS aims at nodes/K each; whole nodes and its tolerance leave at most two more or less. None is empty."""
    sizes = Counter(partition(*random_graph(nodes), num_clusters=num_clusters))
    assert sorted(sizes) == list(range(num_clusters))
    assert all(abs(size - nodes / num_clusters) <= 2 for size in sizes.values())


@pytest.mark.parametrize("num_clusters", [8, 9])
def test_the_same_graph_and_seed_give_the_same_parts(num_clusters):
    first = partition(*random_graph(60), num_clusters=num_clusters, seed=1)
    partition(*random_graph(40), num_clusters=3, seed=2)
    assert first == partition(*random_graph(60), num_clusters=num_clusters, seed=1)


@pytest.mark.parametrize("num_clusters", [2, 8, 9, 16])
def test_recursive_bisection_is_asked_for_whatever_the_number(num_clusters, monkeypatch):
    """Left to itself pymetis changes to k-way at nine parts."""
    import pymetis

    asked = []
    original = pymetis.part_graph
    monkeypatch.setattr(
        pymetis, "part_graph", lambda *args, **options: asked.append(options["recursive"]) or original(*args, **options)
    )
    partition(*random_graph(60), num_clusters=num_clusters)
    assert asked == [True]


def test_one_cluster_and_no_edges_need_no_metis():
    assert partition(*random_graph(10), num_clusters=1) == [0] * 10
    assert partition([0] * 8, [], [], num_clusters=3) == [0, 0, 0, 1, 1, 2, 2]


def test_isolated_nodes_are_spread_too():
    sizes = Counter(partition(*graph(10, {(0, 1): 5}), num_clusters=5))
    assert sorted(sizes.values()) == [2] * 5
