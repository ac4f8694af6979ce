"""Perceptual load, anchors and the load map, by hand."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pytest

from atrl.credit.weights import choose_anchors, load_map, perceptual_load


def anchors(density: list[float], clusters: list[int], ratio: float) -> list[int]:
    densities, ids = np.array(density), np.array(clusters)
    return choose_anchors(densities, ids, perceptual_load(densities, ids), ratio=ratio).nonzero()[0].tolist()


def test_load_is_the_clusters_mean_over_the_responses():
    """Means 0.1 and 0.3 against 0.2 overall."""
    load = perceptual_load(np.array([0.1, 0.4, 0.1, 0.2]), np.array([0, 1, 0, 1]))
    np.testing.assert_allclose(load, [0.5, 1.5])


def test_load_of_unequal_clusters():
    """0.6 over (0.6 + 0.2 + 0.1 + 0.3)/4 = 0.3 is 2; the other three average 0.2, which is 2/3."""
    load = perceptual_load(np.array([0.6, 0.2, 0.1, 0.3]), np.array([1, 0, 0, 0]))
    np.testing.assert_allclose(load, [2 / 3, 2.0])


def test_an_empty_cluster_has_no_load():
    load = perceptual_load(np.array([0.1, 0.1, 0.4, 0.2]), np.array([0, 0, 2, 2]))
    np.testing.assert_allclose(load, [0.5, 0.0, 1.5])


def test_without_density_every_load_is_one():
    assert perceptual_load(np.zeros(4), np.array([0, 0, 1, 1])).tolist() == [1.0, 1.0]


def test_the_peak_finds_one_strong_reader_among_fillers():
    """Largest densities 0.1 and 0.4 over the mean 0.2, where the means are 0.1 and 0.3; an empty cluster has 0."""
    density, clusters = np.array([0.1, 0.4, 0.1, 0.2]), np.array([0, 2, 0, 2])
    np.testing.assert_allclose(perceptual_load(density, clusters, ranking="peak"), [0.5, 0.0, 2.0])


DENSITY = [0.9, 0.45, 0.0, 0.5, 0.6, 0.41, 0.1, 0.1, 0.1, 0.1]
CLUSTERS = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
"""Mean densities 0.45, 0.503 and 0.1: cluster 1 comes before cluster 0, although token 0 is the densest of all."""


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.1, [4]),  # one: the densest of cluster 1
        (0.2, [3, 4]),  # two of cluster 1; by density alone 0 and 4
        (0.3, [3, 4, 5]),  # all of cluster 1; by density alone 0, 3 and 4
        (0.4, [0, 3, 4, 5]),  # and the densest of cluster 0; by density alone 0, 1, 3 and 4
        (0.5, [0, 1, 3, 4, 5]),
        (1.0, list(range(10))),
    ],
)
def test_whole_clusters_first_then_the_last_by_density(ratio, expected):
    assert anchors(DENSITY, CLUSTERS, ratio) == expected


def test_one_cluster_is_filled_by_density_alone():
    assert anchors(DENSITY, [0] * 10, 0.4) == [0, 1, 3, 4]


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.15, 0.29, 0.35, 0.41, 0.5, 0.145, 1 / 3, 1.0])
def test_the_number_of_anchors_is_the_ratio_rounded_half_up(ratio):
    """In exact decimals: 0.35 · 90 = 31.5 gives 32, though 31.499999999999996 in binary. At least one."""
    for tokens in range(1, 400):
        exact = (Decimal(str(ratio)) * tokens).quantize(Decimal(1), ROUND_HALF_UP)
        density = np.arange(tokens)
        chosen = choose_anchors(density, np.zeros(tokens, int), np.ones(1), ratio=ratio)
        assert int(chosen.sum()) == max(1, exact) * (tokens > 1), tokens


def test_ties_go_to_the_lower_cluster_and_the_earlier_token():
    """Both clusters have a mean of 2, the first with four of 2 and the second with 1, 3, 1 and 3."""
    density, clusters = [1, 3, 2, 2, 1, 2, 3, 2], [1, 1, 0, 0, 1, 0, 1, 0]
    assert anchors(density, clusters, 0.375) == [2, 3, 5]  # three of cluster 0
    assert anchors(density, clusters, 0.625) == [1, 2, 3, 5, 7]
    assert anchors(density, clusters, 0.875) == [0, 1, 2, 3, 5, 6, 7]


def test_equal_densities_have_no_anchor():
    """Whatever the clusters; to the last bit, or the larger one has."""
    clusters = [1, 1, 0, 0, 1, 0, 1, 0]
    assert anchors([0.2] * 8, clusters, 0.375) == anchors([0.2] * 8, clusters, 1.0) == anchors([0.2], [0], 1.0) == []
    assert anchors([0.2] * 7 + [np.nextafter(0.2, 1)], [0] * 8, 0.125) == [7]


def test_an_empty_cluster_takes_no_place():
    """Cluster 1 is empty; its load of 0 ranks last."""
    assert anchors([0.1, 0.1, 0.4, 0.2], [0, 0, 2, 2], 0.75) == [0, 2, 3]


def test_load_map_is_a_line_from_low_to_high():
    """Loads 0.5, 1.5 and 1 of the present clusters; the empty one's 0 is not the least."""
    load, clusters = np.array([0.5, 0.0, 1.5, 1.0]), np.array([2, 0, 3, 3, 0])
    np.testing.assert_allclose(load_map(load, clusters, low=1.0, high=3.0), [3.0, 1.0, 2.0, 2.0, 1.0])
    np.testing.assert_allclose(load_map(load, clusters, low=0.0, high=0.5), [0.5, 0.0, 0.25, 0.25, 0.0])


def test_equal_loads_map_to_equal_weights():
    assert load_map(np.array([1.0, 1.0]), np.array([0, 1, 1]), low=0.0, high=3.0).tolist() == [1.0, 1.0, 1.0]
