"""Weights of mean 1 over each response, by hand, and where there is no scale."""

from __future__ import annotations

import pytest
import torch

from atrl.credit.base import normalise, normalise_batch

MASK = torch.tensor([[True, True, True, False], [True, True, False, False], [False] * 4])


def test_each_response_by_itself():
    """(1, 3, 2)·3/6 and (0, 5)·2/5; what stands in the padding counts for nothing."""
    weights = torch.tensor([[1.0, 3.0, 2.0, 9.0], [0.0, 5.0, 9.0, 9.0], [9.0] * 4])
    expected = [[0.5, 1.5, 1.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0] * 4]
    assert normalise(weights, MASK).tolist() == expected


def test_the_whole_batch():
    """A sum of 10 over five tokens: halves."""
    weights = torch.tensor([[1.0, 3.0, 6.0, 9.0], [0.0, 0.0, 9.0, 9.0], [9.0] * 4])
    assert normalise_batch(weights, MASK).tolist() == [[0.5, 1.5, 3.0, 0.0], [0.0] * 4, [0.0] * 4]


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1e-38])
def test_weights_too_small_to_scale_are_none(size):
    """3 over such a sum is beyond float32."""
    weights = torch.tensor([[0.0, size, 0.0, 0.0], [0.0, size, 0.0, 0.0], [0.0] * 4])
    assert torch.equal(normalise(weights, MASK), MASK.float())


def test_the_smallest_that_can_be_scaled_are():
    weights = torch.tensor([[0.0, 1e-37, 0.0, 0.0], [3e-38, 3e-38, 0.0, 0.0], [0.0] * 4])
    torch.testing.assert_close(
        normalise(weights, MASK), torch.tensor([[0.0, 3.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0] * 4])
    )
