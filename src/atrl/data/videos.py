"""Frames from video files, decoded one by one, so that a long file needs no more memory than what is shown of it.

Files are hostile input: only container formats without references to other files are tried, limits on size and length
are checked before anything is decoded, and whatever a decoder raises becomes one line that names problem and file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from atrl.data.frames import FrameSampler
from atrl.data.images import MAX_PIXELS, open_image
from atrl.types import Frames, Problem, Video

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "gif", "mpegts", "mpeg", "flv", "asf", "ogg")
"""Demuxers of libav. Playlists are left out: they name other files, and addresses on the network."""
MAX_SECONDS = 3 * 3600.0
MAX_FRAMES = 60 * 3600 * 3
MAX_DECODED_PIXELS = 500_000_000_000
"""Pixels of all frames together: two hours of 1920×1080 at 30 frames per second."""


def sample_video(video: Video | Frames, sampler: FrameSampler, *, problem_id: str) -> Frames:
    """The frames of `video` that `sampler` chooses, upright, in RGB; frames that were chosen before stay as they are.

    A file is read twice, once without decoding to learn how many frames it has and when. Where the decoder makes others
    of it, those that it makes are the video, and it is read once more.

    Args:
        problem_id: named in errors.

    Raises:
        ValueError: naming problem, file and remedy, if a file is missing, empty, too large, too long or broken, if a
            video has no frames, or if its frames differ in size.
    """
    if isinstance(video, Frames):
        return video
    if isinstance(video.source, tuple):
        return _from_list(video.source, video.fps, sampler, problem_id)
    expected = _packet_times(video, problem_id)
    frames, decoded = _decode(video, sampler, expected, problem_id)
    if decoded != expected:
        frames, decoded = _decode(video, sampler, decoded, problem_id)
    return frames


def check_videos(problems: Sequence[Problem], *, decode_at_most: int = 64) -> None:
    """Reads the header of every video, and decodes the first frame of up to `decode_at_most` of them, evenly spread.

    So that a video that can't be read stops a run before its model loads. A file that several problems show is read
    once. Of a list of frames the first is decoded.

    Raises:
        ValueError: as `sample_video`, for the first bad video.
    """
    first_use: dict[object, tuple[Video, str]] = {}
    for problem in problems:
        for video in problem.videos:
            if isinstance(video, Video):
                key = video.source if isinstance(video.source, Path) else id(video.source)
                first_use.setdefault(key, (video, problem.id))
    stride = -(-len(first_use) // decode_at_most)
    for index, (video, problem_id) in enumerate(first_use.values()):
        if isinstance(video.source, tuple):
            _check_list(video.source, problem_id, decode=index % stride == 0)
        else:
            with _opened(video, problem_id) as (container, stream):
                if index % stride == 0 and next(container.decode(stream), None) is None:
                    raise ValueError("it has no frames; restore it")


def _check_list(source: tuple[Path | Image.Image, ...], problem_id: str, *, decode: bool) -> None:
    if not source:
        raise ValueError(f"problem {problem_id}: a video has no frames: restore it, or leave the problem out")
    missing = next((frame for frame in source if isinstance(frame, Path) and not frame.is_file()), None)
    if missing is not None:
        raise ValueError(f"problem {problem_id}: frame {missing} is missing: restore it, or leave the problem out")
    if decode:
        open_image(source[0], problem_id=problem_id)


def _from_list(source: tuple[Path | Image.Image, ...], fps: float, sampler: FrameSampler, problem_id: str) -> Frames:
    _check_list(source, problem_id, decode=False)
    times = [index / fps for index in range(len(source))]
    chosen = sampler.choose(times, len(source) / fps)
    images = tuple(open_image(source[index], problem_id=problem_id) for index in chosen)
    for index, image in zip(chosen, images, strict=True):
        if image.size != images[0].size:
            raise ValueError(
                f"problem {problem_id}: frame {index} of a video has {image.width}×{image.height} pixels and its first "
                f"{images[0].width}×{images[0].height}: scale its frames to one size"
            )
    return Frames(images, tuple(chosen), tuple(times[index] for index in chosen), len(source), fps)


def _packet_times(video: Video, problem_id: str) -> list[Fraction | None]:
    """When each frame that the file announces is shown; None where the container does not say."""
    times: list[Fraction | None] = []
    with _opened(video, problem_id) as (container, stream):
        for packet in container.demux(stream):
            if packet.size:  # the last one only flushes the decoder
                times.append(None if packet.pts is None else packet.pts * stream.time_base)
                _check_length(times, stream)
    return sorted(times) if None not in times else times


def _check_length(times: Sequence[Fraction | None], stream: VideoStream) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    allowed = min(MAX_FRAMES, MAX_DECODED_PIXELS // max(1, width * height))
    if len(times) > allowed:
        raise ValueError(f"it has more than {allowed:,} frames of {width}×{height} pixels; cut or scale it down")
    if None not in (times[0], times[-1]) and times[-1] - times[0] > MAX_SECONDS:
        raise ValueError(f"it lasts more than {MAX_SECONDS:,.0f} seconds; cut it")


def _decode(
    video: Video, sampler: FrameSampler, expected: Sequence[Fraction | None], problem_id: str
) -> tuple[Frames, list[Fraction | None]]:
    """The frames chosen from among the `expected` ones, and the times of all that were decoded."""
    with _opened(video, problem_id) as (container, stream):
        if not expected:
            raise ValueError("it has no frames; restore it")
        times, fps = _timestamps(expected, stream)
        wanted = sampler.choose(times, len(times) / fps)
        chosen, images, decoded = set(wanted), [], []
        for number, frame in enumerate(container.decode(stream)):
            decoded.append(None if frame.pts is None else frame.pts * frame.time_base)
            _check_length(decoded, stream)
            if number in chosen:
                _check_size(frame.width, frame.height)
                images.append(_upright(frame.to_image(), frame.rotation))
        if len({image.size for image in images}) > 1:
            raise ValueError("its frames change in size; save it with one size")
        return Frames(tuple(images), tuple(wanted), tuple(times[index] for index in wanted), len(times), fps), decoded


def _timestamps(times: Sequence[Fraction | None], stream: VideoStream) -> tuple[list[float], float]:
    """Seconds from the first frame, and frames per second on average; by the announced rate where times make no sense.

    They do not where some are missing, or where they go back, as in files that were put together of several.
    """
    steady = Fraction(stream.average_rate or stream.guessed_rate or 1)
    if None in times or len(times) == 1 or any(later <= earlier for earlier, later in pairwise(times)):
        return [float(index / steady) for index in range(len(times))], float(steady)
    return [float(time - times[0]) for time in times], float((len(times) - 1) / (times[-1] - times[0]))


def _upright(image: Image.Image, rotation: int) -> Image.Image:
    """`rotation` is in degrees counter-clockwise, as the file's display matrix has it."""
    return image.rotate(rotation, expand=True) if rotation % 360 else image


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width}×{height} pixels, more than the limit of {MAX_PIXELS:,}; scale it down")


@contextmanager
def _opened(video: Video, problem_id: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file with its header read and its size checked; what goes wrong inside names problem and file too."""
    import av

    source = video.source
    assert not isinstance(source, tuple), "frames of their own have no file to open"
    where = f"video {source}" if isinstance(source, Path) else "a video in the data itself"
    if isinstance(source, Path) and not source.is_file():
        raise ValueError(f"problem {problem_id}: {where} is missing: restore it, or leave the problem out")
    if not (source.stat().st_size if isinstance(source, Path) else len(source)):
        raise ValueError(f"problem {problem_id}: {where} is an empty file: restore it, or leave the problem out")
    try:
        options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
        file = str(source) if isinstance(source, Path) else BytesIO(source)
        with av.open(file, mode="r", options=options) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise ValueError("it has no video stream; restore it")
            _check_size(stream.codec_context.width, stream.codec_context.height)
            stream.thread_type = "AUTO"
            yield container, stream
    except Exception as error:  # a decoder fed with a broken file raises nearly anything
        raise _unreadable(where, problem_id, error) from error


def _unreadable(where: str, problem_id: str, error: Exception) -> ValueError:
    import av

    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, av.error.InvalidDataError | av.error.ArgumentError):  # the latter: of another format
        reason = f"it is no intact file of {', '.join(FORMATS)}; convert or restore it"
    elif isinstance(error, av.error.FFmpegError):
        reason = f"{reason}; save it again, or leave the problem out"
    return ValueError(f"problem {problem_id}: {where} can't be read: {reason}")
