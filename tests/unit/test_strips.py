"""Videos as strips of frames, and attention laid out over them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from video_prompts import problems

from atrl.callbacks.pictures import Shown, attention_on, shown_pictures, strip, tiled
from atrl.data.prompts import PromptBuilder
from atrl.types import Frames


def frames(count: int, size: tuple[int, int] = (8, 4)) -> Frames:
    shades = tuple(Image.new("RGB", size, (10 * index,) * 3) for index in range(count))
    return Frames(shades, tuple(range(count)), tuple(index / 4 for index in range(count)), count, 4.0)


def test_frames_lie_side_by_side_eight_in_a_row():
    shown = strip(frames(10))
    assert shown.picture.size == (64, 8) and shown.timestamps == [index / 4 for index in range(10)]
    centres = [shown.picture.getpixel((8 * (index % 8) + 4, 4 * (index // 8) + 2))[0] for index in range(10)]
    assert centres == [10 * index for index in range(10)]
    assert shown.picture.getpixel((63, 7)) == (255, 255, 255)  # no eleventh frame
    assert strip(frames(3)).picture.size == (24, 4)


def test_strips_say_how_their_frames_lie():
    assert [strip(frames(count)).frames for count in (1, 5, 8, 9)] == [(1, 1), (1, 5), (1, 8), (2, 8)]
    assert Shown(Image.new("RGB", (4, 4)), None).frames == (1, 1)


def test_large_frames_are_scaled_down():
    assert strip(frames(2, (1024, 512))).picture.size == (512, 128)


def test_frames_of_one_patch_show_the_same_attention():
    """Three patches of 1×2 tokens for five frames: two, two and one."""
    grid = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]]])
    assert tiled(grid, 5).tolist() == [[[1, 2, 1, 2, 3, 4, 3, 4, 5, 6]]]
    sheet = tiled(grid.repeat(1, 3, 1, 1)[:, :9], 9)  # one frame a patch: the ninth begins a row
    assert sheet.shape == (1, 2, 16)
    assert sheet[0, 0].tolist() == [1, 2, 3, 4, 5, 6] * 2 + [1, 2, 3, 4]
    assert sheet[0, 1].tolist() == [5, 6] + [0] * 14


@pytest.fixture
def mixed(processor):
    return PromptBuilder(processor=processor).build(problems()["mixed"])


def test_pictures_and_videos_come_in_the_order_of_their_marks(mixed):
    first, second, third = shown_pictures(mixed)
    assert first.timestamps == [0.0, 2.0, 4.0, 6.0, 8.0] and first.picture.size == (300, 60)
    assert second.timestamps is None and second.picture is mixed.images[0]
    assert third.timestamps == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3], abs=1e-3)


def test_every_visual_token_has_its_place(mixed):
    """Tokens are numbered in the order of the prompt: each map must hold its own numbers, frame by frame."""
    count = sum(int(mixed.pixels[name].prod(dim=1).sum()) // 4 for name in ("image_grid_thw", "video_grid_thw"))
    peak = torch.arange(count, dtype=torch.float32)[None]
    first, second, third = attention_on(mixed, mixed.pixels, peak, merge_size=2)
    (t1, h1, w1), (t2, h2, w2) = mixed.pixels["video_grid_thw"].tolist()
    (_, h, w) = mixed.pixels["image_grid_thw"].tolist()[0]
    videos = t1 * h1 * w1 // 4
    assert first.shape == (1, h1 // 2, 5 * w1 // 2) and t1 == 3
    assert sorted(set(first.flatten().tolist())) == list(range(videos))
    assert first[0, :, : w1 // 2].flatten().tolist() == list(range(h1 * w1 // 4))
    assert second.flatten().tolist() == list(range(videos, videos + h * w // 4))
    assert third.shape == (1, h2 // 2, 6 * w2 // 2)
    assert third[0, :, -w2 // 2 :].flatten().tolist() == list(range(count - h2 * w2 // 4, count))
    assert t2 == 3


def test_without_a_grid_nothing_is_laid_out(mixed):
    """LLaVA's, Gemma 3's and InternVL's processors give none."""
    assert attention_on(mixed, {"pixel_values": torch.zeros(1, 3, 12, 12)}, torch.zeros(2, 9), merge_size=1) is None
    assert attention_on(mixed, {}, torch.zeros(2, 0), merge_size=1) is None
