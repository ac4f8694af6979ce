"""Anchors by lot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from credit_evidence import batch_of, evidence_of

from atrl.credit.random import RandomCredit


def assign(scheme, batch):
    return scheme.assign(batch, evidence_of(scheme, [(1, 1)]))


def test_two_levels_by_hand():
    """Of 12 tokens round(0.25·12) = 3 are anchors: 3·3 + 9·1 = 18 over 12 is 1.5, so the weights are 2 and 2/3."""
    output = assign(RandomCredit(anchor_ratio=0.25), batch_of([(12, 4), (12, 0)]))
    assert output.anchors.sum(dim=1).tolist() == [3, 3]
    torch.testing.assert_close(output.weights, torch.where(output.anchors, 2.0, 2 / 3))


def test_the_lots_follow_the_key_and_the_seed():
    """Of C(40, 6) choices two unlike keys, or seeds, meet in one of 3.8 million."""
    batch = batch_of([(40, 16), (40, 17)])
    first = assign(RandomCredit(), batch).anchors
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, assign(RandomCredit(seed=1), batch).anchors)
    swapped = assign(RandomCredit(), replace(batch, keys=batch.keys[::-1])).anchors
    assert torch.equal(swapped, first.flip(0))


def test_every_token_can_be_drawn():
    """Over 400 keys each of 10 tokens is drawn 80 times of 400 on average, with a standard deviation of 8."""
    batch = batch_of([(10, 1)] * 400)
    batch = replace(batch, keys=[f"p/0/{sample}" for sample in range(400)])
    drawn = assign(RandomCredit(anchor_ratio=0.2), batch).anchors.sum(dim=0)
    assert drawn.sum() == 800 and ((drawn - 80).abs() < 5 * 8).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor_ratio": 0.0}, r"^credit\.anchor_ratio must be in \(0, 1\], got 0\.0"),
        ({"rest_weight": 4.0}, r"^credit\.rest_weight must be between 0 and .* got 4\.0 and 3\.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        RandomCredit(**options)
