"""Sinks where a sliding window hides some of a picture from some rows, on masses small enough to work out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atrl.credit import blocks
from atrl.credit.attention import AttentionCapture, AttentionReader, AttentionRequest
from atrl.credit.connectivity import reduce_without_sinks, remove_sinks
from atrl.credit.head_maps import HeadMapReader, HeadMapRequest
from atrl.credit.regions import Regions
from atrl.credit.window import Seen, seen_through

PICTURE = list(range(8))


def regions_of(*responses: tuple[list[int], list[int]], width: int, device: str = "cpu") -> Regions:
    """Of image columns and rows, one response in each row of the batch; padded ones point at column 0."""
    images, tokens = (max(map(len, lists)) for lists in zip(*responses, strict=True))
    columns, rows = torch.zeros(len(responses), images).long(), torch.zeros(len(responses), tokens).long()
    column_mask, row_mask = columns.bool(), rows.bool()
    for number, (image, row) in enumerate(responses):
        columns[number, : len(image)], column_mask[number, : len(image)] = torch.tensor(image).long(), True
        rows[number, : len(row)], row_mask[number, : len(row)] = torch.tensor(row), True
    return Regions(
        source=torch.arange(len(responses), device=device),
        start=torch.zeros(len(responses), dtype=torch.long, device=device),
        visible=torch.ones(len(responses), width, dtype=torch.bool, device=device),
        rows=rows.to(device),
        row_mask=row_mask.to(device),
        tokens=(rows + 1).to(device),
        columns=columns.to(device),
        column_mask=column_mask.to(device),
    )


def test_what_is_seen_by_hand():
    """Rows 8, 9, 10 and 11 see 4 to 6, 5 and 6, 6, and nothing of columns 1 to 6. In the other response two rows see
    all three columns, and two rows and three columns are padding."""
    regions = regions_of(([1, 2, 3, 4, 5, 6], [8, 9, 10, 11]), ([1, 2, 3], [3, 4]), width=13)
    seen = seen_through(regions, 5)
    assert seen.columns[0].tolist() == [3, 2, 1, 0] and seen.columns[1, :2].tolist() == [3, 3]
    assert seen.rows.tolist() == [[0, 0, 0, 1, 2, 3], [2, 2, 2, 0, 0, 0]]
    one = seen.of(torch.tensor([1, 1]))
    assert one.columns[:, :2].tolist() == [[3, 3]] * 2 and one.rows.tolist() == [[2, 2, 2, 0, 0, 0]] * 2


def test_a_window_that_hides_nothing_is_none():
    """Row 11 is ten columns after the picture's first."""
    regions = regions_of(([1, 2, 3], [9, 11]), ([2], [9]), width=13)
    assert seen_through(regions, 10).columns[0].tolist() == [3, 2]
    assert all(seen_through(regions, window) is None for window in (11, 12, 13, 50, None))


def test_of_what_is_hidden_from_padding_no_one_asks():
    """Padding points at column 0: as a column of the picture it would be hidden from row 11."""
    assert seen_through(regions_of(([9, 10], [11]), ([10], [11]), width=13), 4) is None


def test_without_a_picture_nothing_is_hidden():
    assert seen_through(regions_of(([], [9, 11]), width=13), 4) is None


def test_on_other_devices_nothing_is_waited_for():
    """A tensor without numbers stands for a GPU's: to ask for one would fail. Only lengths can tell that there."""
    regions = regions_of(([1, 2, 3], [9, 11]), width=13, device="meta")
    assert seen_through(regions, 12).columns.shape == (1, 2) and seen_through(regions, 13) is None


@pytest.mark.parametrize("factor", [1.5, 4.0])
def test_numbers_of_what_is_seen_change_nothing_where_all_is(factor):
    """To the bit; of three heads one has a sink, 0.5 beside 19 or 14 columns of about 0.01."""
    image = 0.01 + 0.001 * torch.rand(2, 3, 9, 20, generator=torch.Generator().manual_seed(0))
    image[:, 1, 3, 5], image[:, 2, :6, 7] = 0.5, 0.5
    image[1, :, :, 15:], image[1, :, 7:] = 0, 0
    image_mask, mask = torch.arange(20) < torch.tensor([[20], [15]]), torch.arange(9) < torch.tensor([[9], [7]])
    seen = Seen(columns=torch.tensor([20, 15])[:, None].expand(2, 9), rows=torch.tensor([9, 7])[:, None] * image_mask)
    expected = reduce_without_sinks(image, image_mask, mask, factor=factor)
    assert not torch.equal(expected[0], image)
    found = reduce_without_sinks(image, image_mask, mask, factor=factor, seen=seen)
    assert all(map(torch.equal, found, expected))
    assert torch.equal(remove_sinks(image, image_mask, mask, factor=factor, seen=seen), expected[0])


@pytest.mark.parametrize(
    ("second", "left"),
    [([0.1, 0.1, 0.1, 0.1], [0.6, 0.1, 0.1, 0.1]), ([0.6, 0.1, 0.1, 0.1], [0.0, 0.25, 0.25, 0.25])],
    ids=["half", "all"],
)
def test_most_rows_are_most_of_those_that_see_the_column(second, left):
    """In one head of one response two of four rows see column 0: one of these is half of them, and both are most, if
    half of all. 0.6 is more than 1.5 · 0.9 / 4, and 0.1 less than 1.5 times any even share."""
    image = torch.full((2, 2, 4, 4), 0.1)
    image[1, 0] = torch.tensor([[0.6, 0.1, 0.1, 0.1], second, [0.0, 0.1, 0.1, 0.1], [0.0, 0.1, 0.1, 0.1]])
    seen = Seen(columns=torch.tensor([[4] * 4, [4, 4, 3, 3]]), rows=torch.tensor([[4] * 4, [2, 4, 4, 4]]))
    masks = torch.ones(2, 2, 4, dtype=torch.bool)
    found, total, peak = reduce_without_sinks(image, *masks, factor=1.5, seen=seen)
    torch.testing.assert_close(found[1, 0, 0], torch.tensor(left))
    assert torch.equal(total, found.sum(dim=-1)) and torch.equal(peak, found.amax(dim=-1))
    assert torch.equal(found[1, 0, 2:], image[1, 0, 2:])
    assert torch.equal(found[0], image[0]) and torch.equal(found[1, 1], image[1, 1])


def states(width: int, weights: dict[int, float]) -> tuple[Tensor, Tensor]:
    """Queries and keys of a head that looks so many times as much at these columns as at others."""
    query, key = torch.ones(1, 1, width, 1), torch.zeros(1, 1, width, 1)
    for column, weight in weights.items():
        key[0, 0, column] = math.log(weight)
    return query, key


def read(rows: list[int], window: int | None, weights: dict[int, float], *, factor: float = 1.5) -> AttentionCapture:
    """What a reader makes of `rows` on the picture, the first eight columns."""
    width = rows[-1] + 2
    request = AttentionRequest(sink_factor=factor, neighbours=0)
    reader = AttentionReader(request, regions_of((PICTURE, rows), width=width))
    reader.read_attention(0, *states(width, weights), scaling=1.0, sliding_window=window)
    return reader.result()


@pytest.fixture(params=[None, 20], ids=["whole rows", "by rows"])
def chunk(request, monkeypatch) -> None:
    """With chunks of 20 numbers a picture of eight columns is read two rows at a time."""
    if request.param:
        monkeypatch.setattr(blocks, "CHUNK_ELEMENTS", request.param)


def test_even_attention_through_a_window_has_no_sinks(chunk):
    """Rows 9, 10 and 11 see eight columns, of which 6, 5 and 4 are of the picture. Of all eight of the picture's an
    even share would be 4/64 in row 11 and 5/64 in row 10, and 1/8 more than one and a half of them."""
    capture = read([9, 10, 11], 8, {})
    torch.testing.assert_close(capture.total[0, 0, 0], torch.tensor([6 / 8, 5 / 8, 4 / 8]))
    torch.testing.assert_close(capture.peak[0, 0, 0], torch.full((3,), 1 / 8))


def test_a_sink_that_a_window_hides_from_most_rows_is_removed(chunk):
    """Column 7 weighs 16 and all others 1; each row sees six, rows 9 to 12 column 7 among them, and seven more rows
    don't. Rows 9, 10 and 11 see 4, 3 and 2 columns of the picture: 16 is more than 1.5 · 19/4, 18/3 and 17/2. Row 12
    sees it alone of the picture, which tells nothing. Of the five columns left 3, 2 and 1 are of the picture."""
    capture = read(list(range(9, 20)), 6, {7: 16})
    expected = torch.tensor([3 / 5, 2 / 5, 1 / 5, *[0.0] * 8])
    torch.testing.assert_close(capture.total[0, 0, 0], expected)
    torch.testing.assert_close(capture.peak[0, 0, 0], (expected > 0) / 5)


def test_a_window_wider_than_all_changes_no_bit(chunk):
    """Row 19 is nineteen columns after the first. There is a sink: 16 of 25 in row 9 and of 35 in row 19."""
    expected, found = (read(list(range(9, 20)), window, {7: 16}) for window in (None, 20))
    assert torch.equal(found.total, expected.total) and torch.equal(found.peak, expected.peak)
    assert (expected.peak < 0.12).all() and read(list(range(9, 20)), 20, {7: 16}, factor=0).peak.min() > 0.4


def test_maps_by_head_leave_out_the_same():
    """Of rows 9, 10 and 11 with equal weights: columns 4, 5 and 6 keep a fifth of one, two and three rows."""
    regions = regions_of((PICTURE, list(range(9, 20))), width=21)
    weights = torch.tensor([[1.0, 1.0, 1.0, *[0.0] * 8]])
    reader = HeadMapReader(HeadMapRequest(weights=weights, sink_factor=1.5, row="predicting"), regions)
    reader.read_attention(0, *states(21, {7: 16}), scaling=1.0, sliding_window=6)
    expected = torch.tensor([0, 0, 0, 0, 1 / 15, 2 / 15, 3 / 15, 0])
    torch.testing.assert_close(reader.result()[0, 0, 0], expected)
