"""Find images in files, folders, glob patterns and videos, in an order that depends on their names alone."""

from __future__ import annotations

import collections
import functools
import glob
import os
from collections.abc import Iterator, Sequence
from typing import NoReturn

from pipeline.data.bands import RGB
from pipeline.data.video import VIDEO_SUFFIXES, load_av
from pipeline.errors import ConfigError, DataError, MustError
from pipeline.sources import SourceRecord, video
from pipeline.sources._files import image_suffixes, read_image
from pipeline.storage.path import URL, StoragePath, printable, walk


class ImageFiles:
    """Images at some paths. Iterating yields a record for each, whose name is its path as the user would type it.

    `every`: of so many frames of a video the first is taken. A frame is called `clip.mp4#000030`. In folders, files
    whose suffix is no video's and none of images of `channels` are passed over, and counted in `skipped`. What can't be
    read raises DataError when its record is read.

    Raises ConfigError for a path that is not there, and for a pattern that nothing matches.

    Example:
        for record in ImageFiles(["photos", "more/*.jpg", "clip.mp4"]):
            record.name, record.read()
    """

    def __init__(self, paths: Sequence[str], every: int = video.EVERY) -> None:
        self._every = every
        self.channels = RGB
        """Of the images: those that a model takes."""
        self.skipped = collections.Counter[str]()
        """Files that were passed over by suffix, once all are found."""
        self._paths = [StoragePath.of(name) for path in paths for name in _expand(path)]
        self._names = [name for path in paths for name in _expand(path)]
        if any(path.suffix in VIDEO_SUFFIXES and not path.is_folder() for path in self._paths):
            load_av()  # an error about a missing extra comes first

    def count(self) -> int:
        """Return about how many images there are: a video counts as one."""
        return sum(1 for _ in self._files())

    def __iter__(self) -> Iterator[SourceRecord]:
        for name, file in self._files():
            if file.suffix in VIDEO_SUFFIXES:
                yield from self._frames(name, file)
            else:
                yield SourceRecord(name, "train", functools.partial(read_image, file))

    def _files(self) -> Iterator[tuple[str, StoragePath]]:
        suffixes = {*image_suffixes(self.channels), *VIDEO_SUFFIXES}
        self.skipped.clear()
        for name, path in zip(self._names, self._paths, strict=True):
            if not path.is_folder():
                yield name, path
                continue
            for file in walk(path):
                if file.suffix in suffixes:
                    yield f"{name.rstrip('/')}/{file.relative_to(path)}", file
                else:
                    self.skipped[file.suffix] += 1

    def _frames(self, name: str, file: StoragePath) -> Iterator[SourceRecord]:
        """Yield the frames of a video, and a record that can't be read for what is wrong with it."""
        try:
            source = video.Source(video.Config(path=str(file), every=self._every))
            for record in source.records():
                _, _, frame = record.name.rpartition("#")
                yield SourceRecord(f"{name}#{frame}", "train", record.read)
            problems = source.problems
        except MustError as error:  # one video costs itself
            problems = [(name, str(error))]
        for _, reason in problems:
            yield SourceRecord(name, "train", functools.partial(_refuse, reason))


def _refuse(reason: str) -> NoReturn:
    raise DataError(reason)


def _expand(path: str) -> list[str]:
    """Return the path, or those that it matches as a pattern. Raises ConfigError if there are none."""
    if URL.match(path):
        if not StoragePath.of(path).exists():
            raise ConfigError(f"{path}: there is no such file or folder.")
        return [path]
    expanded = os.path.expanduser(path)
    if os.path.lexists(expanded):
        return [path]
    found = sorted(glob.glob(expanded, recursive=True))
    if not found:
        kind = "file or folder that matches this" if glob.has_magic(path) else "such file or folder"
        raise ConfigError(f"{printable(path)}: there is no {kind}.")
    return found
