"""Pictures and videos as tables store them: paths, encoded bytes, Hugging Face's ``{"bytes", "path"}``, frames."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atrl.data.images import image_from_bytes
from atrl.suggest import did_you_mean
from atrl.types import Video

if TYPE_CHECKING:
    from PIL.Image import Image

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True, slots=True)
class Media:
    """Reads the pictures and videos of one row; files stay where they are, but must exist.

    Args:
        problem_id: of the row.
        where: what errors call the row.
        folder: where relative paths start; None refuses them.
        frame_rate: frames per second of a list of frames that does not say; None refuses it.
    """

    problem_id: str
    where: str
    folder: Path | None
    frame_rate: float | None = None

    def image(self, value: Any) -> Path | Image:
        """A picture from a path, bytes or both.

        Raises:
            ValueError: naming the row, if it is none of these, or the file does not exist.
        """
        value = _content(value)
        if isinstance(value, bytes):
            return image_from_bytes(value, problem_id=self.problem_id)
        return self._file(value, "image", "give a path, or the bytes of a picture")

    def video(self, value: Any) -> Video:
        """A video from a path, bytes, a list of frames, or a list of frames with its rate.

        Raises:
            ValueError: naming the row, if it is none of these, a file does not exist, or frames lack their rate.
        """
        if isinstance(value, Mapping) and value.get("frames") is not None:
            return self._frames(value["frames"], value.get("fps"))
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return self._frames(value, None)
        value = _content(value)
        if isinstance(value, bytes):
            return Video(value)
        if isinstance(value, str) and value.lower().endswith(_PICTURE_SUFFIXES):
            raise ValueError(
                f"{self.where}: {shown(value)} is a picture and not a video: write a list of frames as "
                '{"frames": […], "fps": 2}'
            )
        return Video(self._file(value, "video", "give a path, the bytes of a video, or a list of frames"))

    def _frames(self, values: Any, fps: Any) -> Video:
        if not isinstance(values, Sequence) or isinstance(values, str | bytes) or not values:
            raise ValueError(f"{self.where}: a video's frames must be a list of pictures, got {shown(values)}")
        rate = self.frame_rate if fps is None else fps
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
            raise ValueError(
                f"{self.where}: a list of frames needs its rate in frames per second, got {shown(rate)}: write "
                '{"frames": […], "fps": 2}, or set data.frame_rate'
            )
        return Video(tuple(self.image(frame) for frame in values), float(rate))

    def _file(self, name: Any, what: str, remedy: str) -> Path:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{self.where}: {shown(name)} is not {'an' if what == 'image' else 'a'} {what}: {remedy}")
        if name.startswith(("http://", "https://", "data:")):
            raise ValueError(f"{self.where}: {what} {shown(name)} is not a file: save it as one and give its path")
        if self.folder is None and not os.path.isabs(name):
            raise ValueError(
                f"{self.where}: {what} {shown(name)} is a relative path: set data.image_folder to where it starts"
            )
        path = Path(self.folder or "", name)
        if not os.path.isfile(path):
            siblings = os.listdir(path.parent) if os.path.isdir(path.parent) else []
            raise ValueError(
                f"{self.where}: {what} {shown(str(path))} does not exist"
                f"{did_you_mean(path.name, siblings) or '.'} "
                "Correct the path, or set data.image_folder to where relative paths start"
            )
        return path


def _content(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value.get("path") if value.get("bytes") is None else value["bytes"]
    return value


def shown(value: Any) -> str:
    """The value for an error message, on one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
