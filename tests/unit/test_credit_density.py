"""The three schemes that go by density alone."""

from __future__ import annotations

import pytest
import torch
from credit_evidence import batch_of

from atrl.credit.anchor_only import AnchorOnlyCredit
from atrl.credit.attention import AttentionCapture
from atrl.credit.density import DensityCredit
from atrl.credit.low_connectivity import LowConnectivityCredit
from atrl.credit.token_level import TokenLevelCredit
from atrl.types import Evidence

PEAK = torch.tensor([[0.1, 0.4, 0.0, 0.2, 0.1], [0.2, 0.0, 0.7, 0.1, 0.1]])
"""Of two heads over five tokens: the larger is 0.2, 0.4, 0.7, 0.2, 0.1."""


def assign(scheme, peak: torch.Tensor = PEAK):
    capture = AttentionCapture(
        total=2 * peak[None, None],
        peak=peak[None, None],
        image=torch.zeros(1, 5, 3),
        image_mask=torch.ones(1, 3, dtype=torch.bool),
        edges=None,
    )
    evidence = Evidence(torch.zeros(1, 5), torch.zeros(1, 5), {scheme.requests[0]: capture})
    return scheme.assign(batch_of([(5, 3)]), evidence)


def test_token_level_by_hand():
    """Two anchors of weight 3 and three of 1: 9 over 5 is 1.8."""
    output = assign(TokenLevelCredit(anchor_ratio=0.4, reduction="peak"))
    assert output.anchors.tolist() == [[False, True, True, False, False]]
    torch.testing.assert_close(output.weights, torch.tensor([[1, 3, 3, 1, 1]]) / 1.8)
    torch.testing.assert_close(output.density, torch.tensor([[0.2, 0.4, 0.7, 0.2, 0.1]]))


def test_anchor_only_trains_nothing_else():
    assert assign(AnchorOnlyCredit(anchor_ratio=0.4, reduction="peak")).weights.tolist() == [[0, 2.5, 2.5, 0, 0]]


def test_low_connectivity_trains_the_others_alone():
    output = assign(LowConnectivityCredit(anchor_ratio=0.4, reduction="peak"))
    torch.testing.assert_close(output.weights, torch.tensor([[1.0, 0, 0, 1, 1]]) * 5 / 3)
    assert output.anchors.tolist() == [[False, True, True, False, False]]


def test_a_tie_goes_to_the_earlier_token():
    """0.2 twice: of three anchors the third is token 0."""
    assert assign(TokenLevelCredit(anchor_ratio=0.6, reduction="peak")).anchors[0].nonzero()[:, 0].tolist() == [0, 1, 2]


def test_the_mean_reads_the_total():
    """Means of the doubled peaks: 0.3, 0.4, 0.7, 0.3, 0.2."""
    output = assign(TokenLevelCredit(reduction="mean"))
    torch.testing.assert_close(output.density, torch.tensor([[0.3, 0.4, 0.7, 0.3, 0.2]]))


def test_relative_peaks_are_the_default():
    """The heads' means are 0.16 and 0.22."""
    output = assign(TokenLevelCredit())
    torch.testing.assert_close(output.density[0], (PEAK[0] / 0.16 + PEAK[1] / 0.22) / 2)


def test_one_head_is_the_one_whose_relative_peaks_vary_most():
    """Variances over squared means: 0.0184/0.0256 and 0.0616/0.0484: the second head."""
    output = assign(TokenLevelCredit(reduction="top_heads", top_heads=1))
    torch.testing.assert_close(output.density[0], PEAK[1] / 0.22)


@pytest.mark.parametrize(
    "scheme", [TokenLevelCredit(rest_weight=0.0), AnchorOnlyCredit(), LowConnectivityCredit()], ids=lambda s: s.name
)
def test_without_density_nothing_is_singled_out(scheme):
    output = assign(scheme, 0 * PEAK)
    assert (output.weights == 1).all() and not output.anchors.any()


def test_they_share_one_reading():
    """So that a product of two of them reads the model once."""
    schemes = [TokenLevelCredit(layers=[0, 2]), AnchorOnlyCredit(layers=(0, 2)), LowConnectivityCredit(layers=[0, 2])]
    assert len({request for scheme in schemes for request in scheme.requests}) == 1
    request = TokenLevelCredit(heads=[[1, 0]], sink_factor=2.0, row="own").requests[0]
    assert (request.heads, request.sink_factor, request.row, request.neighbours) == (((1, 0),), 2.0, "own", 0)


@pytest.mark.parametrize("scheme", [TokenLevelCredit, AnchorOnlyCredit, LowConnectivityCredit])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor_ratio": 0.0}, r"^credit\.anchor_ratio must be in \(0, 1.*, got 0\.0"),
        ({"top_heads": 0}, r"^credit\.top_heads must be at least 1, got 0"),
        ({"sink_factor": -1.0}, r"^credit\.sink_factor must be 0 \(off\) or more, got -1\.0"),
    ],
)
def test_ranges(scheme, options, message):
    assert issubclass(scheme, DensityCredit)
    with pytest.raises(ValueError, match=message):
        scheme(**options)


def test_low_connectivity_must_leave_something():
    assert AnchorOnlyCredit(anchor_ratio=1.0).anchor_ratio == 1.0
    with pytest.raises(ValueError, match=r"^credit\.anchor_ratio must be in \(0, 1\), got 1\.0"):
        LowConnectivityCredit(anchor_ratio=1.0)
