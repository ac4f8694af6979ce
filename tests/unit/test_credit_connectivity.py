"""Attention sinks and connectivity density on matrices small enough to work out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atrl.credit.connectivity import connectivity_density, remove_sinks

SINK = [[0.6, 0.1, 0.0, 0.1], [0.5, 0.0, 0.2, 0.1], [0.7, 0.1, 0.1, 0.0]]
"""Three tokens by four columns; medians 0.6, 0.1, 0.1, 0.1, which an even spread would make 0.9/4 = 0.225 each."""


def without_sinks(
    rows: list[list[float]], factor: float, *, rows_of_padding: int = 0, columns_of_padding: int = 0
) -> Tensor:
    """One rollout, layer and head."""
    image = torch.nn.functional.pad(torch.tensor(rows), (0, columns_of_padding, 0, rows_of_padding))
    image_mask = torch.arange(image.shape[1]) < len(rows[0])
    response_mask = torch.arange(image.shape[0]) < len(rows)
    return remove_sinks(image[None, None, None], image_mask[None], response_mask[None], factor=factor)[0, 0, 0]


def test_the_sink_is_dropped_and_the_rest_renormalised():
    """0.6 > 2 · 0.225, so column 0 goes and the rows are divided by 0.4, 0.5 and 0.3."""
    expected = torch.tensor([[0, 0.1 / 0.4, 0, 0.1 / 0.4], [0, 0, 0.2 / 0.5, 0.1 / 0.5], [0, 0.1 / 0.3, 0.1 / 0.3, 0]])
    torch.testing.assert_close(without_sinks(SINK, 2.0), expected)


def test_a_row_is_still_a_softmax_over_what_is_left():
    """Row 0 keeps 0.2 on the picture and 0.2 elsewhere of the 0.4 outside the sink: 1/2 and 1/2."""
    rest = 1 - torch.tensor(SINK).sum(dim=1)
    image = without_sinks(SINK, 2.0).sum(dim=1)
    assert image[0].item() == pytest.approx(0.5)
    torch.testing.assert_close(image + rest / torch.tensor([0.4, 0.5, 0.3]), torch.ones(3))


def test_the_factor_sets_the_threshold():
    """0.6 is 2.667 times the even share of 0.225."""
    assert (without_sinks(SINK, 2.66)[:, 0] == 0).all()
    torch.testing.assert_close(without_sinks(SINK, 2.67), torch.tensor(SINK))


def test_mass_that_only_one_token_gives_is_no_sink():
    """0.9 in a single row is what an anchor looks like: the median of that column is 0."""
    rows = [[0.1, 0.1, 0.0, 0.1], [0.0, 0.0, 0.9, 0.0], [0.1, 0.1, 0.0, 0.1]]
    torch.testing.assert_close(without_sinks(rows, 2.0), torch.tensor(rows))


def test_of_an_even_number_of_rows_the_lower_middle_is_the_median():
    """Lower middles 0.1, 0.1, 0, 0: below 2.2 · 0.05. By the upper (0.9 > 0.66) or the mean (0.5 > 0.385) a sink."""
    rows = [[0.1, 0.1, 0.1, 0.1], [0.9, 0.1, 0.0, 0.0]]
    torch.testing.assert_close(without_sinks(rows, 2.2), torch.tensor(rows))


def test_padding_rows_do_not_count_in_the_median():
    """With three rows of zeros beside three real ones every median would be 0, and nothing a sink."""
    padded = without_sinks(SINK, 2.0, rows_of_padding=3)
    torch.testing.assert_close(padded[:3], without_sinks(SINK, 2.0))
    assert (padded[3:] == 0).all()


def test_padding_columns_do_not_count_in_the_even_share():
    """Spread over eight columns the even share would be 0.1125, and 0.6 more than three times that."""
    padded = without_sinks(SINK, 3.0, columns_of_padding=4)
    torch.testing.assert_close(padded[:, :4], torch.tensor(SINK))
    assert (padded[:, 4:] == 0).all()


def test_heads_and_rollouts_are_judged_alone():
    even = [[0.1] * 4] * 3
    image = torch.tensor([[[SINK, even]], [[even, SINK]]])
    left = remove_sinks(image, torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool), factor=2.0)
    dropped = (left == 0).all(dim=3)[:, 0]
    assert dropped.nonzero().tolist() == [[0, 0, 0], [1, 1, 0]]  # rollout, head, column


def test_a_head_that_gives_everything_to_a_sink_stays_finite():
    left = without_sinks([[1.0, 0.0, 0.0, 0.0]] * 3, 2.0)
    assert left.isfinite().all() and (left == 0).all()


IMAGE = torch.tensor(  # [layer 2, head 2, token 2, image 3]
    [
        [[[0.1, 0.2, 0.3], [0.0, 0.0, 0.5]], [[0.4, 0.0, 0.0], [0.1, 0.1, 0.1]]],
        [[[0.2, 0.2, 0.2], [0.0, 0.7, 0.0]], [[0.0, 0.0, 0.0], [0.3, 0.3, 0.3]]],
    ]
)[None]


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("mean", [(0.6 + 0.4 + 0.6 + 0.0) / 4, (0.5 + 0.3 + 0.7 + 0.9) / 4]),
        ("peak", [0.4, 0.7]),
    ],
)
def test_density_by_hand(reduction, expected):
    assert connectivity_density(IMAGE, reduction=reduction)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("reduction", ["mean", "peak"])
def test_without_a_picture_the_density_is_zero(reduction):
    nothing = torch.zeros(2, 3, 4, 5, 0)
    kept = remove_sinks(nothing, torch.zeros(2, 0, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool), factor=4.0)
    assert kept.shape == nothing.shape
    assert connectivity_density(kept, reduction=reduction).tolist() == [[0.0] * 5] * 2


@pytest.mark.parametrize("reduction", ["mean", "peak"])
def test_padding_columns_add_nothing_to_the_density(reduction):
    wider = torch.nn.functional.pad(IMAGE, (0, 5))
    assert torch.equal(
        connectivity_density(wider, reduction=reduction), connectivity_density(IMAGE, reduction=reduction)
    )
