"""Pictures from files of every kind, and the ones that must be refused."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atrl.data import images
from atrl.data.images import check_images, image_from_bytes, open_image
from atrl.types import Problem


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def pixels(path: Path | Image.Image) -> list:
    """The picture's pixels [height, width, 3] as nested lists, after a check that it is 8-bit RGB."""
    image = open_image(path, problem_id="p1")
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def problem(problem_id: str, *images: Path | Image.Image) -> Problem:
    return Problem(id=problem_id, question="?", answer="1", images=images)


def test_rgb_is_unchanged(tmp_path):
    image = Image.new("RGB", (2, 1))
    image.putpixel((1, 0), (10, 20, 30))
    assert pixels(saved(image, tmp_path / "a.png")) == [[[0, 0, 0], [10, 20, 30]]]


def test_exif_orientation_is_applied(tmp_path):
    """Orientation 6: the stored left column is the top row, seen from the right (EXIF 2.3, tag 0x0112)."""
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    image.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pixels(saved(image, tmp_path / "a.png", exif=exif)) == [[[255, 0, 0]], [[0, 0, 255]]]


def test_alpha_is_composited_on_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    image.putpixel((2, 0), (255, 0, 0, 51))  # a fifth red, four fifths white: 255 · 4/5 = 204
    assert pixels(saved(image, tmp_path / "a.png")) == [[[255, 255, 255], [0, 0, 0], [255, 204, 204]]]


def test_transparent_greyscale_is_composited_on_white(tmp_path):
    image = Image.new("LA", (2, 1), (0, 0))
    image.putpixel((1, 0), (100, 255))
    assert pixels(saved(image, tmp_path / "a.png")) == [[[255] * 3, [100] * 3]]


def test_palette_with_and_without_a_transparent_entry(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 128, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    assert pixels(saved(image, tmp_path / "opaque.png")) == [[[0, 128, 0], [0, 0, 200]]]
    clear = saved(image, tmp_path / "clear.png", transparency=0)
    assert pixels(clear) == [[[255, 255, 255], [0, 0, 200]]]


def test_transparent_colour_of_an_rgb_picture(tmp_path):
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    path = saved(image, tmp_path / "a.png", transparency=(1, 2, 3))
    assert pixels(path) == [[[255, 255, 255], [9, 9, 9]]]


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    assert pixels(saved(image, tmp_path / "a.tif")) == [[[0, 255, 255], [0, 0, 0]]]


def test_cmyk_jpeg(tmp_path):
    path = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=95)
    assert np.abs(np.asarray(pixels(path)) - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize(("mode", "stored", "shown"), [("L", 77, 77), ("1", 1, 255)])
def test_greyscale_and_bilevel(tmp_path, mode, stored, shown):
    assert pixels(saved(Image.new(mode, (1, 1), stored), tmp_path / "a.png")) == [[[shown] * 3]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, suffix):
    """65535 = 255 · 257, so 257 is one step of 8 bits, 385 rounds down to it and 386 up to two."""
    stored = np.array([[0, 257, 385, 386, 32896, 65535]], dtype=np.uint16)
    path = saved(Image.fromarray(stored), tmp_path / f"a.{suffix}")
    assert [pixel[0] for pixel in pixels(path)[0]] == [0, 1, 1, 2, 128, 255]


def test_sixteen_bit_pgm(tmp_path):
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 2 1 65535\n\x01\x01\xff\xff")
    assert pixels(path) == [[[1] * 3, [255] * 3]]


def test_float_pixels_are_refused(tmp_path):
    path = saved(Image.new("F", (1, 1), 0.5), tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"p1: image .*a\.tif can't be read: its 32-bit pixels.*8 or 16 bits"):
        pixels(path)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(path)[0][0] == [255, 0, 0]


def test_picture_in_memory_is_converted_and_left_alone():
    image = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    assert pixels(image) == [[[255, 255, 255]]]
    assert image.mode == "RGBA" and image.getpixel((0, 0)) == (0, 0, 0, 0)
    rgb = Image.new("RGB", (1, 1))
    assert open_image(rgb, problem_id="p1") is not rgb


def test_encoded_picture_stays_encoded():
    stream = BytesIO()
    Image.new("RGB", (2, 1), "red").save(stream, "PNG")
    image = image_from_bytes(stream.getvalue(), problem_id="p1")
    assert pixels(image) == pixels(image) == [[[255, 0, 0], [255, 0, 0]]]
    assert image.fp is not None  # Pillow drops the stream once it has decoded it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"", "is an empty file"),
        (b"not a picture", "can't be read: it is none of PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "can't be read: it is none of PNG"),
        (png_header(4, 4), "can't be read: .*truncated"),
        (png_header(0, 4), "can't be read"),
        (png_header(7000, 7143), r"has 7000×7143 pixels, more than the limit of 50,000,000: scale it down"),
        (png_header(9000, 9999), r"has 9000×9999 pixels, more than the limit"),
        (png_header(30000, 30000), r"can't be read: .*exceeds limit.*; scale it down"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_image(path, problem_id="p1")
    assert str(caught.value).startswith(f"problem p1: image {path} ")
    assert "\n" not in str(caught.value)


def test_truncated_jpeg_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"problem p1: image .*a\.jpg can't be read: .*truncated"):
        open_image(path, problem_id="p1")


def test_size_limit_counts_pixels_exactly():
    image = Image.new("RGB", (5, 4))
    assert open_image(image, problem_id="p1", max_pixels=20).size == (5, 4)
    with pytest.raises(ValueError, match="5×4 pixels, more than the limit of 19"):
        open_image(image, problem_id="p1", max_pixels=19)


def test_zero_sized_picture_in_memory_is_refused():
    with pytest.raises(ValueError, match=r"problem p1: an image in the data itself has no pixels \(0×3\)"):
        open_image(Image.new("RGB", (0, 3)), problem_id="p1")


def test_bytes_that_are_no_picture_name_the_problem():
    with pytest.raises(ValueError, match="problem p7: an image in the data itself can't be read: it is none of"):
        image_from_bytes(b"GIF", problem_id="p7")


def test_check_images_reads_each_picture_once_and_passes_sound_ones(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        images, "open_image", lambda image, problem_id: read.append(open_image(image, problem_id=problem_id))
    )
    path = saved(Image.new("RGB", (2, 2)), tmp_path / "a.png")
    check_images([problem("p1", path, path), problem("p2"), problem("p3", path, Image.new("L", (1, 1)))])
    assert [picture.size for picture in read] == [(2, 2), (1, 1)]
    check_images([])
    assert len(read) == 2


def test_check_images_finds_the_broken_one(tmp_path):
    good = saved(Image.new("RGB", (2, 2)), tmp_path / "good.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(png_header(4, 4))
    with pytest.raises(ValueError, match=r"problem p2: image .*bad\.png can't be read"):
        check_images([problem("p1", good), problem("p2", good, bad)])


def test_check_images_reads_every_header_but_decodes_a_bounded_number(tmp_path):
    """Of four files and two to decode, the first and third are decoded; headers count everywhere."""
    paths = [saved(Image.new("RGB", (2, 2)), tmp_path / f"{index}.png") for index in range(4)]
    problems = [problem(f"p{index}", path) for index, path in enumerate(paths)]
    paths[1].write_bytes(png_header(4, 4))
    check_images(problems, decode_at_most=2)
    paths[3].write_bytes(b"no header")
    with pytest.raises(ValueError, match=r"problem p3: image .*3\.png"):
        check_images(problems, decode_at_most=2)
    paths[2].write_bytes(png_header(4, 4))
    with pytest.raises(ValueError, match=r"problem p2: image .*2\.png .*truncated"):
        check_images(problems, decode_at_most=2)
