"""Pictures inside the page: re-encoded, so that nothing but pixels of a bounded number gets in."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from atrl.data.images import open_image

MAX_SIDE, MAX_STRIP_SIDE = 512, 1024
"""Pixels along the longer side of an embedded picture, and of a strip of frames."""
MAX_PNG_BYTES = 150_000
"""A larger PNG is a photograph, and goes as JPEG."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An embedded picture, or a video's strip of frames; `uri` is None where the file is missing or can't be read."""

    name: str
    uri: str | None
    width: int
    height: int
    timestamps: list[float] | None = None
    """[frame] of a video, in seconds."""

    @property
    def kind(self) -> str:
        """What the page calls it."""
        return "picture" if self.timestamps is None else "video"


def embed(run_dir: Path, name: str, *, problem: str, timestamps: list[float] | None = None) -> Picture:
    """The picture `name` of a run's folder as a data URI, scaled down to `MAX_SIDE`, a video's to `MAX_STRIP_SIDE`.

    Raises:
        ValueError: if `name` leads out of the folder.
    """
    path = (run_dir / name).resolve()
    if not path.is_relative_to(run_dir.resolve()):
        raise ValueError(f"samples.jsonl: image {name!r} lies outside the run's folder: copy it into the folder")
    try:
        picture = open_image(path, problem_id=problem)
    except ValueError:
        return Picture(name, None, 0, 0, timestamps)
    side = MAX_SIDE if timestamps is None else MAX_STRIP_SIDE
    picture.thumbnail((side, side))
    kind, data = "png", _encoded(picture, "PNG", optimize=True)
    if len(data) > MAX_PNG_BYTES:
        kind, data = "jpeg", _encoded(picture, "JPEG", quality=88)
    return Picture(name, f"data:image/{kind};base64,{base64.b64encode(data).decode()}", *picture.size, timestamps)


def _encoded(picture, kind: str, **options) -> bytes:
    # A picture's own metadata (place, camera, comments) stays out of the page.
    picture.info = {}
    stream = BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()
