"""Decode single frames of a video to upright RGB images, through PyAV, which is an extra. No torch.

Frames are counted from 0 in the order in which they are shown. Where a file states the time of every frame, a frame is
reached from the key frame before it; otherwise from the beginning.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from pipeline.data.decode import PIXEL_LIMIT
from pipeline.errors import ConfigError, DataError, MustError, install_command
from pipeline.storage.path import StoragePath
from pipeline.storage.remote_file import open_file
from pipeline.storage.shortage import raise_shortage

FORMATS = {
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".3gp"), "mov"),
    **dict.fromkeys((".mkv", ".webm"), "matroska"),
    **dict.fromkeys((".mpg", ".mpeg"), "mpeg"),
    **dict.fromkeys((".ts", ".mts", ".m2ts"), "mpegts"),
    ".avi": "avi",
    ".flv": "flv",
    ".wmv": "asf",
}
"""FFmpeg's names of formats by suffix. A file is read as this format and no other: some, such as playlists, make FFmpeg
open what they name."""
VIDEO_SUFFIXES = tuple(FORMATS)
LARGE_FRAME_BYTES = 1 << 28
"""Bytes of memory that a machine can give which is short of none."""
MISSING_SHARE = 0.02
"""Share of the frames, by the duration that a file states, that may be missing without its being truncated."""


def load_av() -> ModuleType:
    """Import PyAV. Raises ConfigError, with the command that installs it, if it is missing.

    FFmpeg's messages stay off, as they are by default: passing them on, its threads would wait for Python, which waits
    for them.
    """
    try:
        import av  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"videos need the extra video: {install_command('video')}") from error
    return av


@dataclasses.dataclass(frozen=True)
class FrameIndex:
    """The frames of a video, in the order in which they are shown."""

    seconds: list[float]
    """Times from the first frame's on."""
    ticks: list[int] | None
    """Times in the stream's own unit; None if the file does not state all of them."""
    key_frames: list[int]
    """Numbers of the frames that decoding can begin with."""
    expected: int | None
    """The number of frames that there are by the file's header, None if it does not say."""

    @functools.cached_property
    def numbers(self) -> dict[int, int]:
        """The numbers of frames by their time in ticks."""
        return {tick: number for number, tick in enumerate(self.ticks or ())}

    @property
    def missing(self) -> int:
        """Number of frames that the header promises and the file lacks."""
        return max(0, (self.expected or 0) - len(self.seconds))


class Video:
    """A video file, opened when a frame is asked for. Thread-safe.

    Example:
        video = Video(path)
        image = video.frame(len(video.index.seconds) // 2)
        video.close()
    """

    def __init__(self, file: StoragePath) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._opened = contextlib.ExitStack()
        self._frames: Iterator[Any] | None = None
        self._position = 0

    @functools.cached_property
    def index(self) -> FrameIndex:
        """The frames, found without decoding any. Raises DataError if the file can't be read as a video."""
        with self._explain_errors(), contextlib.ExitStack() as stack:
            return _index(self._open(stack), self.file)

    def frame(self, number: int) -> Image.Image:
        """Return a frame, upright. Raises DataError if it can't be decoded.

        Frames in order cost least: from one to the next, those between are decoded on the way.
        """
        with self._lock, self._explain_errors():
            start = self._start_for(number)
            frame, overshot = self._advance(number, start)
            if overshot and start:  # some formats are not searched exactly
                frame, _ = self._advance(number, 0)
            if frame is None or frame.is_corrupt:
                raise DataError(f"{self.file}: frame {number} of {len(self.index.seconds)} can't be decoded")
            return Image.fromarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))

    def close(self) -> None:
        """Close the file; a later frame opens it again."""
        with self._lock:
            self._close()

    def _start_for(self, number: int) -> int | None:
        """Return the frame to begin with in order to reach `number`, None to go on from where decoding is."""
        index = self.index
        keys = index.key_frames[: bisect.bisect_right(index.key_frames, number)] if index.ticks else []
        nearest = keys[-1] if keys else 0
        return nearest if self._frames is None or not nearest <= self._position <= number else None

    def _advance(self, number: int, start: int | None) -> tuple[Any, bool]:
        """Decode up to a frame and return it, None if it is not there; and True if the first frame lay behind it."""
        if start is not None:
            self._begin_at(start)
        first = True
        for found, frame in self._numbered():
            self._position = found + 1
            if found == number:
                return frame, False
            if found > number:
                return None, first
            first = False
        return None, first

    def _begin_at(self, number: int) -> None:
        self._close()
        container = self._open(self._opened)
        stream, ticks = container.streams.video[0], self.index.ticks
        stream.thread_type = "AUTO"
        if number and ticks:
            container.seek(ticks[number], stream=stream)
        self._position = 0
        self._frames = container.decode(stream)

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        """Yield the next frames with their numbers."""
        assert self._frames is not None
        for frame in self._frames:
            if self.index.ticks is None:
                yield self._position, frame
            elif (number := self.index.numbers.get(frame.pts)) is not None:
                yield number, frame

    def _close(self) -> None:
        self._frames = None
        self._opened.close()

    def _open(self, stack: contextlib.ExitStack) -> Any:
        """Open the file as the format of its suffix, until the stack is closed."""
        data = stack.enter_context(open_file(self.file))
        container = load_av().open(data, format=FORMATS[self.file.suffix], io_open=_open_nothing)
        stack.callback(container.close)
        if not container.streams.video:
            raise DataError(f"{self.file}: holds no video")
        context = container.streams.video[0].codec_context
        if context is None or not 0 < context.width * context.height <= PIXEL_LIMIT:
            raise DataError(f"{self.file}: its video has no known codec or size, or over {PIXEL_LIMIT:,} pixels")
        return container

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except MustError:
            self._close()
            raise
        except (load_av().FFmpegError, OSError, ValueError, EOFError, MemoryError, OverflowError) as error:
            self._close()
            _raise_if_short(error, self.file)
            raise DataError(f"{self.file}: damaged or no video ({error})") from error


def _open_nothing(url: str, flags: int, options: object) -> NoReturn:
    raise ValueError(f"the file asks for another one, {url!r}")


def _raise_if_short(error: Exception, file: StoragePath) -> None:
    """Raise Shortage if the machine is short of something, and not a damaged file asks FFmpeg for absurd amounts."""
    if isinstance(error, load_av().FFmpegError):
        with contextlib.suppress(MemoryError):
            bytearray(LARGE_FRAME_BYTES)
            return
    raise_shortage(error, file)


def _index(container: Any, file: StoragePath) -> FrameIndex:
    """Read the times of all frames from the packets of a container."""
    stream = container.streams.video[0]
    times, keys = [], []
    for packet in _packets(container, stream, file):
        times.append(packet.pts)
        keys.append(packet.is_keyframe)
    expected = stream.frames or None
    if expected is None and container.duration and stream.average_rate:
        expected = int(container.duration / 1_000_000 * float(stream.average_rate) * (1 - MISSING_SHARE))
    if None in times or len(set(times)) < len(times):
        rate = float(stream.average_rate or 0)
        seconds = [number / rate if rate else float("nan") for number in range(len(times))]
        return FrameIndex(seconds, None, [], expected)
    order = sorted(range(len(times)), key=times.__getitem__)
    ticks = [times[place] for place in order]
    seconds = [float((tick - ticks[0]) * stream.time_base) for tick in ticks]
    return FrameIndex(seconds, ticks, [number for number, place in enumerate(order) if keys[place]], expected)


def _packets(container: Any, stream: Any, file: StoragePath) -> Iterator[Any]:
    """Yield the packets with a whole frame, until the file ends or is damaged."""
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_corrupt and not packet.is_discard:
                yield packet
    except load_av().FFmpegError as error:
        _raise_if_short(error, file)
