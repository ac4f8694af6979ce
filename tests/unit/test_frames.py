"""Which frames are shown, and what processors are told of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atrl.data.frames import FrameSampler, frame_array, frame_metadata
from atrl.types import Frames


def even(count: int, fps: float) -> tuple[list[float], float]:
    """Times of evenly spaced frames, and how long they last."""
    return [index / fps for index in range(count)], count / fps


def frames(indices: tuple[int, ...], timestamps: tuple[float, ...], total: int, fps: float) -> Frames:
    return Frames((Image.new("RGB", (6, 4)),) * len(indices), indices, timestamps, total, fps)


@pytest.mark.parametrize(
    ("total", "count", "chosen"),
    [
        (10, 4, [0, 3, 6, 9]),  # 9/3 = 3 apart
        (10, 5, [0, 2, 4, 6, 9]),  # 9/4 = 2.25 apart, cut off: 0, 2.25, 4.5, 6.75, 9
        (100, 2, [0, 99]),
        (10, 1, [0]),
        (3, 16, [0, 1, 2]),  # never more than there are
        (16, 16, list(range(16))),
        (1, 16, [0]),
    ],
)
def test_by_number_the_first_and_last_and_evenly_between(total, count, chosen):
    assert FrameSampler(count=count).choose(*even(total, 30.0)) == chosen


@pytest.mark.parametrize("count", [16, 32, 64])
def test_by_number_it_is_the_benchmarks_rule(count):
    chosen = FrameSampler(count=count).choose(*even(1234, 25.0))
    assert chosen == np.linspace(0, 1233, count, dtype=int).tolist() and len(set(chosen)) == count


@pytest.mark.parametrize(
    ("total", "fps", "rate", "chosen"),
    [
        (10, 5.0, 2.0, [0, 2, 5, 7]),  # 2 s: the frames on at 0, 0.5, 1 and 1.5 s began at 0, 0.4, 1 and 1.4 s
        (10, 5.0, 5.0, list(range(10))),  # sums of fifths are not exact, and none is missed
        (10, 5.0, 50.0, list(range(10))),  # each once
        (30, 30.0, 1.0, [0]),
        (31, 30.0, 1.0, [0, 30]),
        (5, 30.0, 0.5, [0]),  # shorter than the distance
        (10, 7.0, 7 / 3, [0, 3, 6, 9]),  # every third, though 9/7 and 3/(7/3) are not the same number
        (9, 7.0, 7 / 3, [0, 3, 6]),  # three times 3/7 are the end and not a moment before it
        (90, 29.97, 3.0, [0, 9, 19, 29, 39, 49, 59, 69, 79, 89]),
    ],
)
def test_by_rate_the_frames_that_are_on(total, fps, rate, chosen):
    assert FrameSampler(count=64, rate=rate).choose(*even(total, fps)) == chosen


def test_by_rate_unevenly_spaced_frames_are_chosen_by_their_times():
    times = [0.0, 0.1, 0.2, 2.5, 2.6]
    assert FrameSampler(rate=1.0).choose(times, 3.2) == [0, 2, 4]  # at 1 and at 2 s the frame of 0.2 s is still on


def test_more_frames_than_the_limit_by_rate_are_chosen_by_number():
    assert FrameSampler(count=4, rate=5.0).choose(*even(10, 5.0)) == [0, 3, 6, 9]
    assert FrameSampler(count=4, rate=2.0).choose(*even(10, 5.0)) == [0, 2, 5, 7]  # just as many
    assert FrameSampler(count=3, rate=2.0).choose(*even(10, 5.0)) == [0, 4, 9]


@given(
    total=st.integers(1, 400),
    fps=st.floats(0.5, 120),
    count=st.integers(1, 80),
    rate=st.none() | st.floats(0.1, 200),
)
def test_chosen_frames_exist_ascend_and_are_within_the_limit(total, fps, count, rate):
    chosen = FrameSampler(count=count, rate=rate).choose(*even(total, fps))
    assert 1 <= len(chosen) <= min(count, total)
    assert chosen == sorted(set(chosen)) and chosen[0] == 0 and chosen[-1] < total


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "rollout.video_frames must be a whole number of 1 or more, got 0"),
        ({"count": 2.5}, "rollout.video_frames"),
        ({"count": True}, "rollout.video_frames"),
        ({"rate": 0.0}, "rollout.video_rate must be above 0 frames per second, got 0.0: null chooses"),
        ({"rate": -1.0}, "rollout.video_rate"),
        ({"rate": float("inf")}, "rollout.video_rate"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        FrameSampler(**options)


def test_evenly_spaced_frames_are_described_by_their_numbers():
    metadata = frame_metadata(frames((0, 30, 59), (0.0, 1.0, 59 / 30), total=60, fps=30.0))
    assert metadata["frames_indices"] == [0, 30, 59]
    assert (metadata["fps"], metadata["total_num_frames"], metadata["duration"]) == (30.0, 60, 2.0)
    assert (metadata["width"], metadata["height"]) == (6, 4)


def test_unevenly_spaced_frames_are_described_in_milliseconds():
    """At 2 frames per second on average, frames 0, 1 and 5 would be thought to be at 0, 0.5 and 2.5 s."""
    uneven = frames((0, 1, 5), (0.0, 1.9, 2.5), total=6, fps=2.0)
    metadata = frame_metadata(uneven)
    assert metadata["frames_indices"] == [0, 1900, 2500]
    assert (metadata["fps"], metadata["total_num_frames"], metadata["duration"]) == (1000.0, 3000, 3.0)
    assert frame_metadata(replace(uneven, timestamps=(0.0, 0.7, 2.5)))["frames_indices"] == [0, 1, 5]


def test_times_and_spacing_are_what_transformers_reads_from_the_description():
    from transformers.video_utils import VideoMetadata

    for given_frames in (
        frames((0, 8, 17), (0.0, 0.8, 1.7), total=18, fps=10.0),
        frames((0, 1, 5), (0.0, 1.9, 2.5), total=6, fps=2.0),
    ):
        metadata = VideoMetadata(**frame_metadata(given_frames))
        assert metadata.timestamps == pytest.approx(given_frames.timestamps)
        # Three frames in 1.8 s, and three in 3 s.
        assert metadata.sampled_fps == pytest.approx(3 * given_frames.fps / given_frames.total)


def test_an_array_of_all_frames():
    colours = [(255, 0, 0), (0, 255, 0)]
    shown = Frames(tuple(Image.new("RGB", (6, 4), colour) for colour in colours), (0, 1), (0.0, 1.0), 2, 1.0)
    array = frame_array(shown)
    assert (array.shape, array.dtype) == ((2, 4, 6, 3), np.uint8)
    assert array[:, 3, 5].tolist() == [list(colour) for colour in colours]
