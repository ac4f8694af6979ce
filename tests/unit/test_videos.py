"""Frames from files and lists: which, when, how they look, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import av
import pytest
from PIL import Image
from video_files import encode, shades

from atrl.data import videos
from atrl.data.frames import FrameSampler
from atrl.data.videos import check_videos, sample_video
from atrl.types import Frames, Problem, Video


def sample(source, count: int = 16, rate: float | None = None, fps: float | None = None) -> Frames:
    return sample_video(Video(source, fps), FrameSampler(count=count, rate=rate), problem_id="p1")


def assert_refused(source, match: str) -> None:
    """By sampling, and by the check before a run, in one line."""
    video = Video(source)
    for attempt in (
        lambda: sample_video(video, FrameSampler(), problem_id="p1"),
        lambda: check_videos([Problem("p1", "<video>?", "1", videos=(video,))]),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            attempt()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "mpeg4"), ("a.avi", "mpeg4"), ("a.webm", "libvpx"), ("a.gif", "gif")],
)
def test_the_chosen_frames_of_a_file(tmp_path, name, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this libav has no {codec}")
    frames = sample(encode(tmp_path / name, codec=codec), count=4)
    assert shades(frames.images) == list(frames.indices) == [0, 3, 6, 9]
    assert frames.timestamps == pytest.approx([0.0, 0.3, 0.6, 0.9], abs=1e-3)
    assert (frames.total, frames.fps) == (10, pytest.approx(10.0))
    assert {(image.mode, image.size) for image in frames.images} == {("RGB", (64, 48))}


def test_frames_by_rate(tmp_path):
    frames = sample(encode(tmp_path / "a.mp4", 12, fps=6), rate=2.0)
    assert shades(frames.images) == list(frames.indices) == [0, 3, 6, 9]
    assert frames.timestamps == pytest.approx([0.0, 0.5, 1.0, 1.5])


def test_a_file_in_memory(tmp_path):
    path = encode(tmp_path / "a.mp4")
    frames = sample(path.read_bytes(), count=3)
    assert shades(frames.images) == list(frames.indices) == [0, 4, 9]


def test_unevenly_spaced_frames_keep_their_times(tmp_path):
    """The first frame need not be at 0, and times are counted from it."""
    path = encode(tmp_path / "a.mkv", 4, times=[500, 600, 2500, 3500])
    frames = sample(path)
    assert frames.timestamps == pytest.approx([0.0, 0.1, 2.0, 3.0], abs=1e-3)
    assert (frames.total, frames.fps) == (4, pytest.approx(1.0, abs=1e-3))  # three gaps in three seconds
    assert sample(path, rate=1.0).indices == (0, 1, 2, 3)


def test_where_the_file_announces_other_frames_than_it_has_those_that_decode_count(tmp_path, monkeypatch):
    path, counted = encode(tmp_path / "a.mp4"), videos._packet_times
    for extra in (+5, -5):
        monkeypatch.setattr(
            videos,
            "_packet_times",
            lambda video, name, extra=extra: (
                lambda times: times[:extra] if extra < 0 else [*times, *times[-1:] * extra]
            )(counted(video, name)),
        )
        frames = sample(path, count=4)
        assert shades(frames.images) == list(frames.indices) == [0, 3, 6, 9] and frames.total == 10


def test_a_sound_file_is_decoded_once(tmp_path, monkeypatch):
    calls, decode = [], videos._decode
    monkeypatch.setattr(videos, "_decode", lambda *arguments: calls.append(1) or decode(*arguments))
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "mpeg4"), ("a.ts", "mpeg2video")):
        sample(encode(tmp_path / name, fps=25, codec=codec))
    assert len(calls) == 3


def test_more_frames_than_were_announced_are_limited_too(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", 12)
    announced = videos._packet_times(Video(path), "p1")[:3]
    monkeypatch.setattr(videos, "_packet_times", lambda video, name: announced)
    monkeypatch.setattr(videos, "MAX_FRAMES", 12)
    assert sample(path).total == 12
    monkeypatch.setattr(videos, "MAX_FRAMES", 11)
    with pytest.raises(ValueError, match="it has more than 11 frames"):
        sample(path)


def test_a_file_put_together_of_two_goes_by_its_rate(tmp_path):
    """The times of the second part begin again."""
    part = encode(tmp_path / "a.ts", 5, fps=25, codec="libx264").read_bytes()
    frames = sample(part + part)
    assert shades(frames.images) == [0, 1, 2, 3, 4] * 2
    assert frames.timestamps == pytest.approx([index / 25 for index in range(10)]) and frames.fps == 25.0


def test_where_packets_and_frames_differ_in_time_the_frames_count(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4")
    monkeypatch.setattr(videos, "_packet_times", lambda video, name: [Fraction(index, 100) for index in range(10)])
    assert sample(path).timestamps == pytest.approx([index / 10 for index in range(10)])


def test_frames_that_change_in_size_within_a_file_are_refused(tmp_path):
    parts = [encode(tmp_path / f"{side}.ts", 5, fps=25, codec="libx264", size=(side, 48)) for side in (64, 80)]
    with pytest.raises(ValueError, match="can't be read: its frames change in size; save it with one size"):
        sample(b"".join(part.read_bytes() for part in parts))


def test_a_recording_that_was_held_sideways_is_turned_upright():
    """A quarter turn counter-clockwise takes the right edge to the top."""
    picture = Image.new("RGB", (4, 2), "black")
    picture.putpixel((3, 0), (255, 255, 255))
    turned = videos._upright(picture, 90)
    assert turned.size == (2, 4) and turned.getpixel((0, 0)) == (255, 255, 255)
    assert videos._upright(picture, 0) is picture is videos._upright(picture, -360)


def test_memory_does_not_grow_with_the_length(tmp_path):
    """400 frames of 640×480 are 369 MB; four of them are shown."""
    path = encode(tmp_path / "long.mp4", 400, size=(640, 480))
    script = (
        "import resource, sys; from pathlib import Path; from atrl.data.frames import FrameSampler\n"
        "from atrl.data.videos import sample_video; from atrl.types import Video\n"
        "def show(name): return sample_video(Video(Path(name)), FrameSampler(count=4), problem_id='p')\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "show(sys.argv[2]); before = peak(); show(sys.argv[1]); print((peak() - before) // 1024)"
    )
    short = encode(tmp_path / "short.mp4", 8, size=(640, 480))
    done = subprocess.run([sys.executable, "-c", script, path, short], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60


# Lists of frames


def grey(index: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, (20 * index,) * 3)


def test_a_list_of_pictures_and_files(tmp_path):
    grey(2).save(tmp_path / "two.png")
    frames = sample((grey(0), grey(1), tmp_path / "two.png", grey(3)), count=3, fps=2.0)
    assert shades(frames.images) == list(frames.indices) == [0, 1, 3]
    assert frames.timestamps == (0.0, 0.5, 1.5)
    assert (frames.total, frames.fps) == (4, 2.0)
    assert shades(sample((grey(0), grey(1), tmp_path / "two.png", grey(3)), count=4, fps=2.0).images) == [0, 1, 2, 3]


def test_only_the_chosen_files_are_opened(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"broken")
    grey(0).save(tmp_path / "0.png")
    grey(2).save(tmp_path / "2.png")
    assert shades(sample(tuple(tmp_path / f"{index}.png" for index in range(3)), count=2, fps=1.0).images) == [0, 2]


def test_frames_that_were_chosen_before_stay_as_they_are():
    frames = Frames((grey(1),), (7,), (3.5,), 8, 2.0)
    assert sample_video(frames, FrameSampler(count=16), problem_id="p") is frames


@pytest.mark.parametrize("fps", [None, 0.0, -1.0, float("inf"), float("nan")])
def test_a_list_without_a_rate_has_no_times(fps):
    with pytest.raises(ValueError, match="needs their rate in frames per second"):
        Video((grey(0),), fps)


def test_frames_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"problem p1: frame 2 of a video has 8×9 pixels and its first 8×8"):
        sample((grey(0), grey(1), grey(2, (8, 9))), fps=1.0)


def test_a_list_with_a_missing_or_broken_frame_is_refused(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name, match in (("gone.png", r"problem p1: frame .*gone\.png is missing"), ("broken.png", "problem p1: image")):
        with pytest.raises(ValueError, match=match):
            sample((tmp_path / name, tmp_path / name), fps=1.0)
        with pytest.raises(ValueError, match=match):
            check_videos([Problem("p1", "<video>", "1", videos=(Video((tmp_path / name,), 1.0),))])


def test_no_frames_are_refused():
    for attempt in (lambda video: sample(video, fps=1.0), lambda video: check_videos([problem(Video(video, 1.0))])):
        with pytest.raises(ValueError, match="problem p1: a video has no frames: restore it"):
            attempt(())


def problem(*shown: Video | Frames) -> Problem:
    return Problem("p1", "?", "1", videos=shown)


# Hostile files


def test_missing_and_empty_files(tmp_path):
    assert_refused(tmp_path / "gone.mp4", r"problem p1: video .*gone\.mp4 is missing: restore it")
    (tmp_path / "empty.mp4").touch()
    assert_refused(tmp_path / "empty.mp4", r"problem p1: video .*empty\.mp4 is an empty file: restore it")
    assert_refused(b"", "problem p1: a video in the data itself is an empty file")


def test_what_is_no_video(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    assert_refused(
        tmp_path / "text.mp4", r"problem p1: video .*text\.mp4 can't be read: it is no intact file of mov, mp4"
    )
    assert_refused(b"\0" * 5000, "problem p1: a video in the data itself can't be read: it is no intact file")
    grey(1).save(tmp_path / "picture.png")
    assert_refused(tmp_path / "picture.png", "can't be read: it is no intact file")


def test_a_file_that_was_cut_off(tmp_path):
    whole = encode(tmp_path / "a.mp4").read_bytes()
    assert_refused(whole[: len(whole) // 2], "can't be read")
    # A Matroska file is written from front to back: what is there of it is a shorter video.
    part = encode(tmp_path / "a.mkv", 10, codec="mpeg4").read_bytes()
    frames = sample(part[: len(part) - 200])
    assert 1 <= frames.total <= 10 and shades(frames.images) == list(frames.indices)


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bytes_give_frames_or_one_line(tmp_path, seed):
    import random

    rng = random.Random(seed)
    data = bytearray(encode(tmp_path / "a.mp4").read_bytes())
    for _ in range(40):
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        assert sample(bytes(data)).images
    except ValueError as error:
        assert str(error).startswith("problem p1: a video in the data itself can't be read: ") and "\n" not in str(
            error
        )


def test_a_file_with_sound_alone(tmp_path):
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=1024)
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert_refused(tmp_path / "a.mov", "can't be read: it has no video stream")


def test_a_playlist_can_not_name_other_files(tmp_path):
    encode(tmp_path / "secret.mp4")
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with av.open(str(tmp_path / "list.ffconcat")) as container:  # libav itself would follow it
        assert container.streams.video
    assert_refused(tmp_path / "list.ffconcat", "can't be read: it is no intact file")


def test_a_frame_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "MAX_PIXELS", 64 * 48 - 1)
    assert_refused(encode(tmp_path / "a.mp4"), "can't be read: it has 64×48 pixels, more than the limit of 3,071")


@pytest.mark.parametrize(
    ("limit", "value", "match"),
    [
        ("MAX_FRAMES", 9, "it has more than 9 frames of 64×48 pixels; cut or scale it down"),
        ("MAX_DECODED_PIXELS", 64 * 48 * 9, "it has more than 9 frames"),
        ("MAX_SECONDS", 0.85, "it lasts more than 1 seconds; cut it"),
    ],
)
def test_too_long_a_video_is_refused(tmp_path, monkeypatch, limit, value, match):
    path = encode(tmp_path / "a.mp4")
    assert sample(path, count=1).total == 10
    monkeypatch.setattr(videos, limit, value)
    with pytest.raises(ValueError, match=f"problem p1: video .*a.mp4 can't be read: {match}"):
        sample(path, count=1)


def test_every_video_is_looked_at_once(tmp_path, monkeypatch):
    paths = [encode(tmp_path / f"{index}.mp4") for index in range(4)]
    opened = []
    original = videos._opened

    def counting(video, problem_id):
        opened.append(video.source)
        return original(video, problem_id)

    monkeypatch.setattr(videos, "_opened", counting)
    problems = [problem(Video(path), Video(path)) for path in paths * 2]
    check_videos(problems)
    assert opened == paths


def test_the_check_decodes_the_first_frame_of_a_part(tmp_path):
    """Behind a sound header the frames are gone: only a decoder sees it."""
    whole = encode(tmp_path / "a.mkv").read_bytes()
    header = whole[: whole.index(b"\x1f\x43\xb6\x75") + 16]  # into the first cluster
    hollow = [problem(Video(header)), problem(Video(bytes(bytearray(header))))]
    with pytest.raises(ValueError, match="can't be read"):
        check_videos(hollow)
    check_videos([problem(Video(whole)), *hollow], decode_at_most=1)
