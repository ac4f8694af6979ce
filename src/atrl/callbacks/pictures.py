"""What the report shows of a prompt: its pictures, its videos as strips of frames, and attention on both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from atrl.data.prompts import IMAGE_MARK, marks_of
from atrl.report.heatmaps import frame_layout
from atrl.types import Frames, Prompt

MAX_TILE_SIDE = 256
"""Pixels along the longer side of a frame in a strip."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture, or a video as one picture of all its frames, in reading order."""

    picture: Image.Image
    timestamps: list[float] | None
    """[frame] in seconds; None for a picture."""

    @property
    def frames(self) -> tuple[int, int]:
        """Rows and columns of frames."""
        return frame_layout(self.timestamps)


def shown_pictures(prompt: Prompt) -> list[Shown]:
    """The prompt's pictures and videos in the order of their marks."""
    images, videos = iter(prompt.images), iter(prompt.videos)
    marks = marks_of(prompt.problem)
    return [Shown(next(images), None) if mark == IMAGE_MARK else strip(next(videos)) for mark in marks]


def attention_on(
    prompt: Prompt, pixels: Mapping[str, Tensor], peak: Float[Tensor, "token image"], merge_size: int
) -> list[Float[Tensor, "token row column"]] | None:
    """`peak`, the mass of each token on each image or video token, laid out over each of `shown_pictures`.

    Frames of one temporal patch share its tokens, and so show the same. None without pictures, and of processors that
    give no grids of patches: theirs crop pictures or cut them into tiles, and no token has a known place.

    Args:
        pixels: the processor's tensors, for the shapes.
        merge_size: patches per token along one side.
    """
    if not any(name.endswith("_grid_thw") for name in pixels):
        return None
    grids = {kind: iter(pixels.get(f"{kind}_grid_thw", ())) for kind in ("image", "video")}
    videos = iter(prompt.videos)
    maps, start = [], 0
    for mark in marks_of(prompt.problem):
        patches, height, width = next(grids["image" if mark == IMAGE_MARK else "video"]).tolist()
        rows, columns = height // merge_size, width // merge_size
        end = start + patches * rows * columns
        grid = peak[:, start:end].reshape(len(peak), patches, rows, columns)
        maps.append(grid.amax(dim=1) if mark == IMAGE_MARK else tiled(grid, len(next(videos).images)))
        start = end
    return maps


def strip(frames: Frames) -> Shown:
    """The frames side by side, scaled down to `MAX_TILE_SIDE`."""
    first = frames.images[0]
    scale = min(1.0, MAX_TILE_SIDE / max(first.size))
    width, height = (max(1, round(side * scale)) for side in first.size)
    rows, columns = frame_layout(frames.timestamps)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for number, image in enumerate(frames.images):
        row, column = divmod(number, columns)
        sheet.paste(image.resize((width, height)), (column * width, row * height))
    return Shown(sheet, [round(time, 3) for time in frames.timestamps])


def tiled(grid: Float[Tensor, "token patch row column"], frames: int) -> Float[Tensor, "token rows columns"]:
    """The map of each frame where `strip` has the frame; 0 where it has none."""
    tokens, patches, height, width = grid.shape
    rows, columns = frame_layout(range(frames))
    sheet = grid.new_zeros(tokens, rows * height, columns * width)
    frames_per_patch = -(-frames // patches)
    for number in range(frames):
        row, column = divmod(number, columns)
        place = sheet[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        place.copy_(grid[:, number // frames_per_patch])
    return sheet
