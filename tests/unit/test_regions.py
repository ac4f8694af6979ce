"""Where responses and pictures are, by hand; and packed rows against padded ones."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from atrl.credit.attention import AttentionReader, AttentionRequest
from atrl.credit.picture_columns import picture_columns
from atrl.credit.regions import image_columns, packed_regions, padded_regions, visual_token_ids
from atrl.types import Experience

IMAGE = 7


def test_image_columns_by_hand():
    columns, mask = image_columns(torch.tensor([[7, 1, 7, 8, 2], [3, 7, 4, 5, 6], [1, 2, 3, 4, 5]]), (7, 8))
    assert mask.tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    assert columns.tolist() == [[0, 2, 3], [1, 0, 0], [0, 0, 0]]


def test_visual_token_ids_of_a_configuration():
    assert visual_token_ids(SimpleNamespace(image_token_id=5, video_token_id=3)) == (3, 5)
    assert visual_token_ids(SimpleNamespace(image_token_index=9)) == (9,)
    with pytest.raises(AssertionError, match="names no image token id"):
        visual_token_ids(SimpleNamespace())


SEQUENCES = [([1, 7, 7, 2], [3, 4, 5]), ([7, 9], [6]), ([2, 2, 7, 7, 7], [8, 1])]
"""Prompt and response of three sequences; 7 is an image token."""


def padded() -> Experience:
    """One a row: prompts padded on the left to 5, responses on the right to 3."""
    ids, mask = torch.zeros(3, 8, dtype=torch.long), torch.zeros(3, 8, dtype=torch.long)
    for row, (prompt, response) in enumerate(SEQUENCES):
        tokens = torch.tensor(prompt + response)
        ids[row, 5 - len(prompt) : 5 + len(response)] = tokens
        mask[row, 5 - len(prompt) : 5 + len(response)] = 1
    return Experience(ids, mask, mask[:, 5:].bool(), [{}] * 3, torch.zeros(3, 3), keys=["0/a/0", "0/b/0", "0/c/0"])


def test_padded_regions_by_hand():
    regions = padded_regions(padded(), (IMAGE,))
    assert regions.rows.tolist() == [[4, 5, 6]] * 3 and regions.tokens.tolist() == [[5, 6, 7]] * 3
    assert regions.columns.tolist() == [[2, 3, 0], [3, 0, 0], [2, 3, 4]]
    assert padded_regions(padded(), (IMAGE,), "own").rows.tolist() == [[5, 6, 7]] * 3


def test_padded_regions_say_where_the_first_query_stands():
    regions = padded_regions(padded(), (IMAGE,))
    assert regions.aligned == (0, 4) and padded_regions(padded(), (IMAGE,), "own").aligned == (0, 5)
    assert regions.part(slice(0, 3)) is regions
    assert [regions.part(slice(start, start + 1)).aligned for start in range(3)] == [(0, 4), (1, 4), (2, 4)]
    for start in range(3):
        part = regions.part(slice(start, 3))
        row, column = part.aligned
        assert part.source.tolist() == list(range(row, 3)) and part.rows[0].tolist() == [column, column + 1, column + 2]


def test_pictures_come_first_only_if_every_row_sees_every_column():
    """Of the three sequences the last alone has three image tokens: the others' columns are padded."""
    regions = padded_regions(padded(), (IMAGE,))
    assert [regions.part(slice(start, start + 1)).pictures_first for start in range(3)] == [False, False, True]
    third = regions.part(slice(2, 3))
    assert not regions.pictures_first
    assert not replace(third, column_mask=torch.tensor([[True, True, False]])).pictures_first
    hidden = regions.visible.clone()
    hidden[2, 3] = False
    assert not replace(third, visible=hidden).pictures_first
    assert replace(third, start=torch.tensor([2])).pictures_first
    assert not replace(third, start=torch.tensor([3])).pictures_first
    assert replace(third, columns=torch.tensor([[1, 2, 4]])).pictures_first  # the first query stands in column 4
    assert not replace(third, columns=torch.tensor([[1, 2, 5]])).pictures_first
    assert not replace(third, rows=third.rows[:, :0]).pictures_first


def test_packed_regions_by_hand():
    """The first two sequences share a row, the third has one of its own with two columns of padding."""
    ids = torch.tensor([[1, 7, 7, 2, 3, 4, 5, 7, 9, 6], [2, 2, 7, 7, 7, 8, 1, 0, 0, 0]])
    segments = torch.tensor([[1] * 7 + [2] * 3, [1] * 7 + [0] * 3])
    is_response = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1, 1, 0, 0, 0]]).bool()
    regions = packed_regions(ids, segments, is_response, (IMAGE,))
    assert regions.source.tolist() == [0, 0, 1] and regions.start.tolist() == [0, 7, 0]
    assert regions.tokens.tolist() == [[4, 5, 6], [9, 0, 0], [5, 6, 0]]
    assert [row[mask].tolist() for row, mask in zip(regions.rows, regions.row_mask, strict=True)] == [
        [3, 4, 5],
        [8],
        [4, 5],
    ]
    assert regions.columns.tolist() == [[1, 2, 0], [7, 0, 0], [2, 3, 4]]
    assert regions.column_mask.sum(dim=1).tolist() == [2, 1, 3]
    assert regions.aligned is None and regions.part(slice(1, 3)).aligned is None


@pytest.mark.parametrize("row", ["predicting", "own"])
def test_packed_rows_read_as_the_same_sequences_apart(row):
    """Each sequence's queries and keys stand in both layouts; nothing of a neighbour is seen."""
    request = AttentionRequest(row=row, sink_factor=0, neighbours=2, detail=True)
    generator = torch.Generator().manual_seed(0)
    apart = padded()
    queries = [torch.randn(2, len(p) + len(r), 4, generator=generator) for p, r in SEQUENCES]
    keys = [torch.randn(1, len(p) + len(r), 4, generator=generator) for p, r in SEQUENCES]

    def laid_out(pieces, heads, rows, columns, places):
        tensor = torch.randn(rows, heads, columns, 4, generator=generator)  # what stands elsewhere must not matter
        for piece, (source, start) in zip(pieces, places, strict=True):
            tensor[source, :, start : start + piece.shape[1]] = piece
        return tensor

    starts = [5 - len(prompt) for prompt, _ in SEQUENCES]
    reader = AttentionReader(request, padded_regions(apart, (IMAGE,), row))
    places = list(zip(range(3), starts, strict=True))
    reader.read_attention(0, laid_out(queries, 2, 3, 8, places), laid_out(keys, 1, 3, 8, places), scaling=0.5)
    expected = reader.result()

    ids = torch.tensor([[1, 7, 7, 2, 3, 4, 5, 7, 9, 6], [2, 2, 7, 7, 7, 8, 1, 0, 0, 0]])
    segments = torch.tensor([[1] * 7 + [2] * 3, [1] * 7 + [0] * 3])
    is_response = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1, 1, 0, 0, 0]]).bool()
    places = [(0, 0), (0, 7), (1, 0)]
    reader = AttentionReader(request, packed_regions(ids, segments, is_response, (IMAGE,), row))
    reader.read_attention(0, laid_out(queries, 2, 2, 10, places), laid_out(keys, 1, 2, 10, places), scaling=0.5)
    packed = reader.result()
    torch.testing.assert_close(packed.mass, expected.mass, atol=1e-6, rtol=0)
    torch.testing.assert_close(packed.edges.strengths, expected.edges.strengths, atol=1e-6, rtol=0)
    assert expected.mass[0].sum() > 0


# Which picture an image token is of.

CONFIG = SimpleNamespace(image_token_id=7, video_token_id=8, vision_config=SimpleNamespace(spatial_merge_size=2))


def pictures_of(prompts: list[list[int]], pixels: list[dict[str, torch.Tensor]]) -> list[list[int]]:
    """By response, the picture of each image column, after prompts of one length and one response token."""
    ids = torch.tensor([[*prompt, 1] for prompt in prompts])
    ones = torch.ones_like(ids)
    batch = Experience(ids, ones, ones[:, -1:].bool(), pixels, torch.zeros(len(ids), 1), keys=list(map(str, range(9))))
    regions = padded_regions(batch, (7, 8))
    found = picture_columns(batch, regions, CONFIG)
    assert torch.equal(found.sum(dim=2), regions.column_mask.float())
    return [own[mask].nonzero()[:, 1].tolist() for own, mask in zip(found, regions.column_mask, strict=True)]


def test_pictures_of_grids_by_hand():
    """Pictures that touch, a video of two frames with a word between, and a picture behind it; none; one alone."""
    prompts = [[7, 7, 7, 8, 8, 5, 8, 8, 7], [5] * 9, [5, 5, 8, 8, 5, 5, 5, 5, 5]]
    pixels = [
        {
            "image_grid_thw": torch.tensor([[1, 2, 4], [1, 2, 2], [1, 2, 2]]),
            "video_grid_thw": torch.tensor([[2, 2, 4]]),
        },
        {},
        {"video_grid_thw": torch.tensor([[2, 2, 2]])},
    ]
    assert pictures_of(prompts, pixels) == [[0, 0, 1, 2, 2, 2, 2, 3], [], [0, 0]]
    with pytest.raises(AssertionError, match="image_grid_thw gives 2 tokens, not 4"):
        pictures_of(prompts[:1], [pixels[0] | {"image_grid_thw": torch.tensor([[1, 2, 4]])}])


def test_pictures_without_grids_are_runs():
    prompts = [[7, 7, 5, 7, 5, 7, 7], [5, 5, 5, 5, 5, 5, 7], [5] * 7]
    assert pictures_of(prompts, [{"pixel_values": torch.zeros(3, 1)}] * 3) == [[0, 0, 1, 2, 2], [0], []]
    assert pictures_of([[5, 5]], [{}]) == [[]]
