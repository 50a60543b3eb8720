"""Videos as images without labels: every n-th frame, or so many in a second of each. Needs the extra `video`.

A frame is called by its number, from 0: `clip.mp4#000030`. A truncated video costs its rest.
"""

from __future__ import annotations

import bisect
import collections
import functools
import io
import math
import threading
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.data.video import VIDEO_SUFFIXES, Video, load_av
from pipeline.errors import ConfigError, DataError
from pipeline.recipe.source import SourceConfig
from pipeline.sources import SourceRecord
from pipeline.sources._files import FileSource, images_under
from pipeline.storage.path import StoragePath, require_exists, walk
from pipeline.stores.labels import LabelSpace

EVERY = 30
"""Of so many frames the first is taken, if the recipe does not say how many."""
MOST_OPEN = 4
"""Videos whose files are open at once: those whose frames are read now."""
READY = 64
"""Frames that were decoded on the way to others, and are kept as files until they are asked for."""
TOLERANCE_S = 1e-6
"""Of the times that files state, which are rounded."""


class Config(SourceConfig):
    """A video, or a folder of videos; all frames belong to the split `train`."""

    kind: Literal["video"] = "video"
    path: str
    """File, folder or URL."""
    every: Annotated[int, Field(ge=1)] | None = None
    """Of so many frames the first is taken; by default of 30."""
    fps: Annotated[float, Field(gt=0)] | None = None
    """Frames per second to take, instead of `every`."""
    form: Literal["jpeg", "png"] = "jpeg"
    """Format in which frames are stored: JPEG of quality 95 without coarser colours, or PNG, which loses nothing and
    takes several times the space."""

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Config:
        if self.fps is not None and self.every is not None:
            raise ValueError("every and fps both choose the frames; leave one of them out")
        return self


class Source(FileSource):
    """Reads the videos. Raises ConfigError if the path does not exist, holds no video, or PyAV is missing."""

    def __init__(self, config: Config) -> None:
        self.config = config
        load_av()
        path = require_exists(StoragePath.of(config.path), "path", "path")
        if path.is_folder():
            self._found = list(walk(path))
            super().__init__(path, files=[file for file in self._found if file.suffix in VIDEO_SUFFIXES])
        else:
            self._found = [path]
            super().__init__(path.parent, files=[path] if path.suffix in VIDEO_SUFFIXES else [])
        if not self.files:
            raise ConfigError(f"path: no videos in {path}; known by their suffix are {', '.join(VIDEO_SUFFIXES)}")
        self._lock = threading.Lock()
        self._open = collections.OrderedDict[str, _FrameReader]()

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        """Return {} for a folder of videos that has no images: frames of these may be there already."""
        folder = StoragePath.of(path)
        if not folder.is_folder() or next(images_under(folder), None) is not None:
            return None
        return {} if any(file.suffix in VIDEO_SUFFIXES for file in walk(folder)) else None

    def spaces(self) -> dict[str, LabelSpace]:
        return {}

    def read_records(self) -> Iterator[SourceRecord]:
        self.skipped.update(file.suffix for file in self._found if file not in self.files)
        for file in self.files:
            name = file.relative_to(self.root)
            try:
                video = Video(file)
                chosen, index = self._choose(video), video.index
            except DataError as error:
                self.problems.append((name, str(error)))
                continue
            if index.missing:
                total = index.missing + len(index.seconds)
                self.problems.append((name, f"truncated: {index.missing:,} of {total:,} frames are missing"))
            yield from self._records_of(video, name, chosen)

    def _records_of(self, video: Video, name: str, chosen: list[int]) -> Iterator[SourceRecord]:
        reader, stamp = _FrameReader(video, chosen, self.config.form), video.file.stamp()
        for number in chosen:
            read = functools.partial(self._read, reader, number)
            yield SourceRecord(f"{name}#{number:06d}", "train", read, stamp=lambda: stamp)

    def count(self) -> None:
        """Return None: to count the frames is to read the files."""

    def _choose(self, video: Video) -> list[int]:
        """Return the numbers of the frames to take. Raises DataError if there are none."""
        index = video.index
        if not index.seconds:
            raise DataError(f"{video.file}: has not one whole frame")
        if self.config.fps is None:
            return list(range(0, len(index.seconds), self.config.every or EVERY))
        if any(map(math.isnan, index.seconds)):
            raise DataError(f"{video.file}: states no times of frames; choose them by `every` instead of `fps`")
        chosen: dict[int, int] = {}
        for number, seconds in enumerate(index.seconds):
            chosen.setdefault(math.floor((seconds + TOLERANCE_S) * self.config.fps), number)
        return list(chosen.values())

    def _read(self, reader: _FrameReader, number: int) -> bytes:
        with self._lock:  # a reader that is closed meanwhile opens its file again
            key = reader.video.file.path
            self._open[key] = reader
            self._open.move_to_end(key)
            closed = self._open.popitem(last=False)[1] if len(self._open) > MOST_OPEN else None
        if closed:
            closed.video.close()
        return reader.read(number)


class _FrameReader:
    """Reads chosen frames of a video as image files. Threads ask for them in nearly their order."""

    def __init__(self, video: Video, chosen: list[int], form: str) -> None:
        self.video, self._chosen, self._form = video, chosen, form
        self._next = 0
        self._ready = collections.OrderedDict[int, bytes]()
        self._lock = threading.Lock()

    def read(self, number: int) -> bytes:
        """Return a frame; earlier ones that were not asked for yet are decoded first, and kept."""
        with self._lock:
            if number in self._ready:
                return self._ready.pop(number)
            place = bisect.bisect_left(self._chosen, number)
            # asked for out of turn by a thread that was faster than others: theirs come next
            first = self._next if 0 <= place - self._next < READY else place
            for passed in self._chosen[first:place]:
                try:
                    self._ready[passed] = self._encode(passed)
                except DataError:
                    continue  # raised to the one that asks for it
            while len(self._ready) > READY:
                self._ready.popitem(last=False)
            self._next = place + 1
            return self._encode(number)

    def _encode(self, number: int) -> bytes:
        buffer, image = io.BytesIO(), self.video.frame(number)
        if self._form == "png":
            image.save(buffer, "PNG")
        else:
            image.save(buffer, "JPEG", quality=95, subsampling=0)
        return buffer.getvalue()
