"""Pictures from files, however they were saved, as the 8-bit RGB that image processors take.

Files are hostile input: only raster formats are tried (no PostScript, which would start an interpreter), a
size limit is checked before anything is decoded, and whatever a decoder raises becomes one line that names
problem and file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from atrl.types import Problem

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 50_000_000


def open_image(image: Path | Image.Image, *, problem_id: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in RGB, 8 bits a channel, upright as its EXIF tag says; a new image each time.

    Transparent pixels are laid on white, 16-bit greyscale is scaled down; an animation gives one frame.

    Args:
        image: a file, or a picture in memory (which stays as it is, undecoded if it was).
        problem_id: named in errors.
        max_pixels: width times height above which the picture is refused undecoded; 50 megapixels are 150 MB.

    Raises:
        ValueError: naming problem, file and remedy, if the picture is missing, empty, too large or broken.
    """
    with _opened(image, problem_id, max_pixels) as picture:
        try:
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture))
        except Exception as error:  # a decoder fed with a broken file raises nearly anything
            raise _unreadable(image, problem_id, error) from error


def image_from_bytes(data: bytes, *, problem_id: str) -> Image.Image:
    """The encoded picture in `data`, not decoded yet, so that it takes no more memory than its file did.

    Raises:
        ValueError: naming the problem, if `data` is no picture.
    """
    stream = BytesIO(data)
    try:
        return _open_header(stream)
    except Exception as error:
        raise _unreadable(stream, problem_id, error) from error


def check_images(problems: Sequence[Problem], *, decode_at_most: int = 512) -> None:
    """Reads the header of every picture and decodes up to `decode_at_most`, spread evenly over the problems.

    So that a picture that can't be read stops a run before its model loads. A file that several problems show
    is read once. Of a large data set only a part is decoded: what breaks behind a sound header shows in use.

    Raises:
        ValueError: as `open_image`, for the first bad picture.
    """
    first_use: dict[object, tuple[Path | Image.Image, str]] = {}
    for problem in problems:
        for image in problem.images:
            key = image if isinstance(image, Path) else id(image)
            first_use.setdefault(key, (image, problem.id))
    stride = -(-len(first_use) // decode_at_most)
    for index, (image, problem_id) in enumerate(first_use.values()):
        if index % stride == 0:
            open_image(image, problem_id=problem_id)
        else:
            with _opened(image, problem_id, MAX_PIXELS):
                pass


@contextmanager
def _opened(image: Path | Image.Image, problem_id: str, max_pixels: int) -> Iterator[Image.Image]:
    """The picture with its header read and its size checked; a file is closed afterwards."""
    if not isinstance(image, Image.Image):
        picture = _open_file(image, problem_id)
    elif isinstance(file := getattr(image, "fp", None), BytesIO):
        # Decoding would keep the pixels in the data set's own object for good: decode a second one instead.
        picture = image_from_bytes(file.getvalue(), problem_id=problem_id)
    else:
        picture = image
    try:
        _check_size(picture, image, problem_id, max_pixels)
        yield picture
    finally:
        if picture is not image:
            picture.close()


def _open_file(path: Path, problem_id: str) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"problem {problem_id}: image {path} is missing: restore it, or leave the problem out")
    if path.stat().st_size == 0:
        raise ValueError(f"problem {problem_id}: image {path} is an empty file: restore it, or leave the problem out")
    try:
        return _open_header(path)
    except Exception as error:
        raise _unreadable(path, problem_id, error) from error


def _open_header(source: Path | BytesIO) -> Image.Image:
    with warnings.catch_warnings():
        # `_check_size` refuses such pictures, in our words.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(source, formats=FORMATS)


def _check_size(picture: Image.Image, image: Path | Image.Image, problem_id: str, max_pixels: int) -> None:
    width, height = picture.size
    if width == 0 or height == 0:
        raise ValueError(f"problem {problem_id}: {_label(image)} has no pixels ({width}×{height}): replace it")
    if width * height > max_pixels:
        raise ValueError(
            f"problem {problem_id}: {_label(image)} has {width}×{height} pixels, more than the limit of "
            f"{max_pixels:,}: scale it down"
        )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        picture = _scale_16_bits(np.asarray(picture))
    elif picture.mode in ("I", "F"):
        picture = _scale_32_bits(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _scale_16_bits(pixels: np.ndarray) -> Image.Image:
    """Greyscale [height, width] of 0 … 65535 to 0 … 255; 65535 = 255 · 257."""
    return Image.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _scale_32_bits(picture: Image.Image) -> Image.Image:
    """Pillow opens 16-bit PGM files as 32-bit integers; outside their range black and white are unknown."""
    pixels = np.asarray(picture)
    if picture.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("its 32-bit pixels have no known range; save it with 8 or 16 bits a channel")
    return _scale_16_bits(pixels)


def _unreadable(image: Path | Image.Image | BytesIO, problem_id: str, error: Exception) -> ValueError:
    if isinstance(error, Image.DecompressionBombError):
        reason = f"{error}; scale it down"
    elif isinstance(error, UnidentifiedImageError):
        reason = f"it is none of {', '.join(FORMATS)}; convert or restore it"
    else:
        reason = f"{' '.join(str(error).split()) or type(error).__name__}; save it again, or leave the problem out"
    return ValueError(f"problem {problem_id}: {_label(image)} can't be read: {reason}")


def _label(image: object) -> str:
    return f"image {image}" if isinstance(image, Path) else "an image in the data itself"
