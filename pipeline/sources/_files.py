"""Helpers for the files of a source: find images, check sizes."""

from __future__ import annotations

import functools
import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence

from pipeline.data.bands import BAND_SUFFIXES, RGB
from pipeline.errors import DataError
from pipeline.sources import BaseSource, SourceRecord
from pipeline.sources._splits import Split, has_split_folders, parse_split, split_by_hash
from pipeline.storage.path import StoragePath, walk

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif"),
)
MAX_IMAGE_BYTES = 2 << 30
"""Larger files are refused: an image of as many pixels as are read has fewer bytes."""


class FileSource(BaseSource):
    """Base class of sets in files.

    The images and label images lie below `folders`, the images in the first; `files` are others, such as lists.
    A subclass implements `read_records`, and calls `super().__init__(root, folders, files)`.
    """

    def __init__(
        self, root: StoragePath, folders: Sequence[StoragePath] = (), files: Sequence[StoragePath] = ()
    ) -> None:
        self.root, self.folders, self.files = root, folders, files

    @abstractmethod
    def read_records(self) -> Iterator[SourceRecord]:
        """Yield all images, and add what can't be one to `problems`."""

    def records(self) -> Iterator[SourceRecord]:
        self.problems.clear()
        self.skipped.clear()
        empty = True
        for record in self.read_records():
            empty = False
            yield record
        if empty and self.problems:
            name, reason = self.problems[0]
            raise DataError(f"{self.root}: no image can be used; the first problem: {name}: {reason}")
        if empty and self.folders:
            suffixes = ", ".join(image_suffixes(self.channels))
            raise DataError(f"{self.folders[0]}: no images found; they are known by their suffix ({suffixes})")
        if empty:
            more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
            raise DataError(f"no images found in {self.files[0]}{more}")

    def count(self) -> int | None:
        return sum(1 for _ in self._images_under(self.folders[0])) if self.folders else None

    def file_stamps(self) -> list[tuple[str, int, int]]:
        images = itertools.chain.from_iterable(map(self._images_under, self.folders))
        return stamp_files(self.root, [*self.files, *images])

    def images_in(self, folder: StoragePath) -> Iterator[StoragePath]:
        """Yield the images below a folder, and count the other files in `skipped`."""
        for file in walk(folder):
            if file.suffix in image_suffixes(self.channels):
                yield file
            elif file not in self.files:
                self.skipped[file.suffix] += 1

    def list_remote(self) -> dict[StoragePath, StoragePath]:
        """Return the images of remote folders, listed at once: no file's stamp then needs a request of its own."""
        return {file: file for folder in self.folders if not folder.local for file in self._images_under(folder)}

    def _images_under(self, folder: StoragePath) -> Iterator[StoragePath]:
        return images_under(folder, image_suffixes(self.channels))

    @functools.cached_property
    def _in_splits(self) -> bool:
        return has_split_folders(self.folders[0])

    def _split(self, name: str, hold_out: float) -> Split | None:
        """Return the split of an image, by its path in the first folder; None if it lies in no split's folder."""
        return parse_split(name.partition("/")[0]) if self._in_splits else split_by_hash(name, hold_out)


def stamp_files(root: StoragePath, files: Iterable[StoragePath]) -> list[tuple[str, int, int]]:
    """Return (name relative to `root`, size in bytes, mtime in ns) of `files`, sorted, each once."""
    return sorted({(file.relative_to(root), *file.stamp()) for file in files})


def image_suffixes(channels: int) -> tuple[str, ...]:
    """Return the suffixes of images of so many channels."""
    return IMAGE_SUFFIXES if channels == RGB else (*IMAGE_SUFFIXES, *BAND_SUFFIXES)


def images_under(root: StoragePath, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> Iterator[StoragePath]:
    """Yield the files that `walk` finds below `root` and whose suffix is that of an image; none is opened."""
    return (file for file in walk(root) if file.suffix in suffixes)


def read_image(file: StoragePath) -> bytes:
    """Return the bytes of an image file. Raises DataError if it can't be read, or is larger than an image can be."""
    size, _ = file.stamp() if file.local or file.info else (0, 0)  # of others, it would take a request
    if size > MAX_IMAGE_BYTES:
        raise DataError(f"{file}: has {size:,} bytes; an image may have {MAX_IMAGE_BYTES:,}")
    return file.read()


def check_size(label_size: tuple[int, int], image_size: tuple[int, int], subject: str) -> None:
    """Raise DataError unless a label has the (width, height) of the upright image; `subject` begins the message."""
    if label_size == image_size:
        return
    text = f"{subject} {label_size[0]}x{label_size[1]}, the upright image {image_size[0]}x{image_size[1]}"
    if label_size == image_size[::-1]:
        text += ": swapped, as a label of an image before the rotation that its EXIF asks for would be"
    raise DataError(text)
