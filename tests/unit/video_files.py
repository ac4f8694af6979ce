"""Small video files, encoded when a test needs them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

STEP = 20
"""The grey of frame i is i times this."""


def encode(
    path: Path,
    count: int = 10,
    *,
    fps: int = 10,
    size: tuple[int, int] = (64, 48),
    codec: str = "mpeg4",
    times: Sequence[int] | None = None,
) -> Path:
    """A video whose frame i is of grey i · STEP, at i/fps seconds or at `times` in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "gray" if codec == "gif" else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(count):
            frame = av.VideoFrame.from_image(Image.new("RGB", size, (index * STEP % 256,) * 3))
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shades(images: Sequence[Image.Image]) -> list[int]:
    """Which frame of `encode`'s each picture is, by the grey of its middle."""
    return [round(image.getpixel((image.width // 2, image.height // 2))[0] / STEP) for image in images]
