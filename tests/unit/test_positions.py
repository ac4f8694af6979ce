"""Positions in multimodal RoPE, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atrl.models.positions import position_ids, token_types

TEXT = 7


def positions(policy, rows: list[list[int]], **grids) -> list[Tensor]:
    """[row] of [3, token], the padding on the left taken off; it must not change anything."""
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    found = position_ids(policy, ids, mask, {name: torch.tensor(grid) for name, grid in grids.items()})
    assert found.shape == (3, *ids.shape) and (found[:, mask == 0] == 0).all()
    return [found[:, row, length - len(tokens) :] for row, tokens in enumerate(rows)]


@pytest.fixture
def video(policy) -> int:
    return policy.config.video_token_id


@pytest.fixture
def image(policy) -> int:
    return policy.config.image_token_id


def test_what_kind_a_token_is(policy, image, video):
    assert token_types(policy, torch.tensor([[TEXT, image, video, TEXT]])).tolist() == [[0, 1, 2, 0]]


def test_text_counts_on_and_a_picture_has_rows_and_columns(policy, image):
    """2×3 tokens of a picture after two of text begin at 2; the text after it at its largest position + 1, 5."""
    (found,) = positions(policy, [[TEXT] * 2 + [image] * 6 + [TEXT] * 2], image_grid_thw=[[1, 4, 6]])
    assert found[0].tolist() == [0, 1, *[2] * 6, 5, 6]
    assert found[1].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert found[2].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]


def test_a_video_counts_seconds_and_text_goes_on_after_its_last(policy, video):
    """4 tokens per second · 1 s per patch: patches at 0, 4 and 8; one row and two columns; the text begins at 1+8+1."""
    assert policy.config.vision_config.tokens_per_second == 4
    (found,) = positions(
        policy, [[TEXT] + [video] * 6 + [TEXT] * 2], video_grid_thw=[[3, 2, 4]], second_per_grid_ts=[1.0]
    )
    assert found[0].tolist() == [0, 1, 1, 5, 5, 9, 9, 10, 11]
    assert found[1].tolist() == [0, 1, 1, 1, 1, 1, 1, 10, 11]
    assert found[2].tolist() == [0, 1, 2, 1, 2, 1, 2, 10, 11]


def test_a_short_video_of_large_frames_ends_with_its_height(policy, video):
    """4 · 0.1 s: patches at 0 and ⌊0.4⌋ = 0; four rows of one token reach 3."""
    (found,) = positions(policy, [[video] * 8 + [TEXT]], video_grid_thw=[[2, 8, 2]], second_per_grid_ts=[0.1])
    assert found[0].tolist() == [*[0] * 8, 4]
    assert found[1].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]


def test_times_are_cut_off_and_not_rounded_to_float32(policy, video):
    """0.7 as float32 is a little less: 5 · 4 · 0.7 is 13.99…, which float32 rounds to 14. vLLM has 13."""
    (found,) = positions(policy, [[video] * 6], video_grid_thw=[[6, 2, 2]], second_per_grid_ts=[0.7])
    assert found[0].tolist() == [0, 2, 5, 8, 11, 13]


def test_rows_of_all_kinds_have_their_own_grids(policy, image, video):
    """Padded on the left; grids are dealt out row by row, each kind in its own order."""
    rows = [
        [TEXT] * 3,
        [video, video, TEXT, image, TEXT, video],
        [image, TEXT],
        [TEXT, video, TEXT],
    ]
    found = positions(
        policy,
        rows,
        image_grid_thw=[[1, 2, 2], [1, 2, 2]],
        video_grid_thw=[[2, 2, 2], [1, 2, 2], [1, 2, 2]],
        second_per_grid_ts=[2.0, 1.0, 1.0],
    )
    assert found[0].tolist() == [[0, 1, 2]] * 3
    # The first video's patches stand at 0 and 8 in time, at 0 in height and width.
    assert found[1].tolist() == [[0, 8, 9, 10, 11, 12], [0, 0, 9, 10, 11, 12], [0, 0, 9, 10, 11, 12]]
    assert found[2].tolist() == [[0, 1]] * 3 and found[3].tolist() == [[0, 1, 2]] * 3


def test_each_of_several_videos_moves_all_that_follows(policy, video):
    """Patches 4 apart: the first ends at 4, text at 5, the second is at 6 and 10, text at 11."""
    (found,) = positions(
        policy,
        [[video, video, TEXT, video, video, TEXT]],
        video_grid_thw=[[2, 2, 2], [2, 2, 2]],
        second_per_grid_ts=[1.0, 1.0],
    )
    assert found[0].tolist() == [0, 4, 5, 6, 10, 11]
    assert found[1].tolist() == found[2].tolist() == [0, 0, 5, 6, 6, 11]


def test_videos_without_times_count_patches(policy, video):
    """Qwen2-VL's processor gives no seconds: then a patch is a second of 4 tokens, as transformers has it."""
    (found,) = positions(policy, [[video, video, TEXT]], video_grid_thw=[[2, 2, 2]])
    assert found[0].tolist() == [0, 4, 5]


def test_a_model_without_multimodal_positions_counts_its_tokens():
    from types import SimpleNamespace

    model = SimpleNamespace(base_model=SimpleNamespace())
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert position_ids(model, torch.zeros_like(mask), mask, {}).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]
