"""Sinks that leave so little of a row that float32 can hardly tell how much."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atrl.credit.attention import AttentionReader, AttentionRequest
from atrl.credit.connectivity import SMALLEST_REST, remove_sinks
from tests.unit.test_credit_window import PICTURE, regions_of


def without_sinks(*rows: list[float]) -> Tensor:
    """One rollout, layer and head; four columns, and a sink holds more than two even shares."""
    masks = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, len(rows), dtype=torch.bool)
    return remove_sinks(torch.tensor(rows)[None, None], *masks, factor=2.0)[0, 0]


@pytest.mark.parametrize(
    ("row", "left"),
    [
        ([1 - 2**-10, 2**-11, 0, 0], [0, 1 / 2, 0, 0]),  # half of the rest is on the picture
        ([1 - 2**-11, 2**-12, 0, 0], [0, 0, 0, 0]),  # half as much is too little
        ([1 - 2**-10, 2**-10, 2**-11, 0], [0, 2 / 3, 1 / 3, 0]),  # half as much again is seen as can be left
        ([1, 2**-10, 0, 0], [0, 1, 0, 0]),
        ([1 + 2**-10, 2**-10, 2**-10, 0], [0, 1 / 2, 1 / 2, 0]),
        ([1 + 2**-10, 2**-11, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_what_a_strong_sink_leaves(row, left):
    """Exact in float32. Rows that rounding has made more than 1 are among them."""
    assert SMALLEST_REST == 2**-10
    assert torch.equal(without_sinks(row)[0], torch.tensor(left, dtype=torch.float32))


def test_rows_of_the_head_are_judged_alone():
    """The middle one is blind; the last, which sums to one and two ulps, gives the sink nothing and keeps each bit."""
    last = [0, 0.5, 0.25, 0.25 + 2**-22]
    assert torch.tensor(last).sum().item() == 1 + 2**-22
    left = without_sinks([0.75, 0.125, 0, 0], [1 - 2**-12, 2**-14, 0, 0], last)
    assert torch.equal(left, torch.tensor([[0, 0.5, 0, 0], [0, 0, 0, 0], last]))


def totals(weight: float, ulps: int | None) -> Tensor:
    """Of rows 9 to 12 on a picture of eight columns, the third of which weighs so much and all others 1; scores are
    100 and more. The log-sum-exp is the kernel's, so many ulps off; None reads whole rows."""
    query, key = torch.ones(1, 1, 14, 2), torch.zeros(1, 1, 14, 2)
    key[..., 0], key[0, 0, 2, 1] = 100, math.log(weight)
    lse = (100 + (weight + torch.arange(14, dtype=torch.float64)).log()).float()
    lse = None if ulps is None else (lse + ulps * 2**-17)[None, None]
    reader = AttentionReader(AttentionRequest(neighbours=0), regions_of((PICTURE, [9, 10, 11, 12]), width=14))
    reader.read_attention(0, query, key, scaling=1.0, logsumexp=lse)
    return reader.result().total[0, 0, 0]


PASSES = [None, -2, -1, 0, 1, 2]


@pytest.mark.parametrize("weight", [1e5, 1e6, 1e7])
def test_passes_agree_that_a_row_is_blind(weight):
    """Nine to twelve others are left of 100,000 and more: 12e-5 at most, which two ulps change by 1.5e-5."""
    assert all((totals(weight, ulps) == 0).all() for ulps in PASSES)


@pytest.mark.parametrize("weight", [10, 100, 9000])
def test_passes_agree_on_what_is_left(weight):
    """Seven of nine to twelve columns. With 9,000 they are 2⁻¹⁰ of the row and a little more."""
    expected = 7 / torch.tensor([9.0, 10, 11, 12])
    for ulps in PASSES:
        torch.testing.assert_close(totals(weight, ulps), expected, rtol=1 / 32, atol=0)
