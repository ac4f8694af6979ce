"""Which frames of a video are shown, and how an image processor is told which they are."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atrl.types import Frames

_ROUNDING = 1e-6
"""Seconds by which a frame's time may lie behind the moment that it is shown at: times are sums of fractions."""
_CLOCK = 1000.0
"""Ticks per second in which unevenly spaced frames are counted."""


@dataclass(frozen=True, kw_only=True)
class FrameSampler:
    """Chooses frames by number or by rate.

    - By number: ``numpy.linspace(0, n - 1, k, dtype=int)`` of n frames, first and last included, as the benchmarks of
      video understanding do; all of them where there are fewer than k.
    - By rate: the frames that are on at the moments 0, 1/rate, 2/rate, … before the end, each once. Where these are
      more than k, k by number.

    Args:
        count: k, the most frames that are shown of a video.
        rate: frames per second; None chooses by number.

    Raises:
        ValueError: if one of them is not positive.
    """

    count: int = 16
    rate: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"rollout.video_frames must be a whole number of 1 or more, got {self.count!r}")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ValueError(
                f"rollout.video_rate must be above 0 frames per second, got {self.rate}: null chooses "
                "rollout.video_frames frames evenly"
            )

    def choose(self, timestamps: Sequence[float], duration: float) -> list[int]:
        """Numbers of the frames to show, ascending.

        Args:
            timestamps: [frame] of all of the video's frames, in seconds, ascending from 0.
            duration: of the video, the last frame's time included.
        """
        if self.rate is not None:
            moments = [number / self.rate for number in range(math.ceil(duration * self.rate - _ROUNDING))]
            shown = {max(0, bisect_right(timestamps, moment + _ROUNDING) - 1) for moment in moments} or {0}
            if len(shown) <= self.count:
                return sorted(shown)
        total = len(timestamps)
        return np.linspace(0, total - 1, min(self.count, total), dtype=int).tolist()


def frame_array(frames: Frames) -> np.ndarray:
    """[frame, height, width, 3] uint8, as processors and engines take a video."""
    return np.stack([np.asarray(image) for image in frames.images])


def frame_metadata(frames: Frames) -> dict[str, Any]:
    """`frames` in the terms of transformers' ``VideoMetadata``: a frame's time is its index over ``fps``.

    Where frames are not evenly spaced (a phone's recording), no rate makes that true of their numbers: then they are
    counted in milliseconds.
    """
    fps, indices, total = frames.fps, list(frames.indices), frames.total
    drift = max(abs(time - index / fps) for index, time in zip(indices, frames.timestamps, strict=True))
    if drift > 0.5 / fps:
        indices, total, fps = [round(_CLOCK * time) for time in frames.timestamps], round(_CLOCK * total / fps), _CLOCK
    height, width = frames.images[0].height, frames.images[0].width
    return {
        "total_num_frames": total,
        "fps": fps,
        "width": width,
        "height": height,
        "duration": total / fps,
        "video_backend": "pyav",
        "frames_indices": indices,
    }
