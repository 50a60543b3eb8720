"""Helpers for the files of a source: find images, pair them with label files, check sizes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord
from pipeline.storage.path import StoragePath, walk

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


def stamp_files(root: StoragePath, files: Iterable[StoragePath]) -> list[tuple[str, int, int]]:
    """Return (name relative to `root`, size in bytes, mtime in ns) of `files`, sorted."""
    return sorted((file.relative_to(root), *file.stamp()) for file in files)


def images_under(root: StoragePath) -> Iterator[StoragePath]:
    """Yield the files that `walk` finds below `root` and whose suffix is that of an image; none is opened."""
    return (file for file in walk(root) if file.suffix in IMAGE_SUFFIXES)


def count_images(root: StoragePath) -> int:
    """Return how many files `images_under` yields."""
    return sum(1 for _ in images_under(root))


def check_size(label_size: tuple[int, int], image_size: tuple[int, int], subject: str) -> None:
    """Raise DataError unless a label has the (width, height) of the upright image; `subject` begins the message."""
    if label_size == image_size:
        return
    text = f"{subject} {label_size[0]}x{label_size[1]}, the upright image {image_size[0]}x{image_size[1]}"
    if label_size == image_size[::-1]:
        text += ": that is the image before the rotation that its EXIF asks for; rotate the label, or drop the EXIF"
    raise DataError(text)


def pair_files(
    images: StoragePath, labels: StoragePath
) -> tuple[list[tuple[StoragePath, StoragePath | None]], list[StoragePath]]:
    """Pair images with label files of the same relative path without suffix; return pairs and labels left over.

    Raises DataError if no image has a label, or one has two; ConfigError if one folder lies in the other.
    """
    prefixes = (f"{images.path}/", f"{labels.path}/")
    if prefixes[0].startswith(prefixes[1]) or prefixes[1].startswith(prefixes[0]):
        raise ConfigError(f"{images} and {labels} lie in one another; give images and labels a folder each")
    label_files: dict[str, StoragePath] = {}
    for file in images_under(labels):
        other = label_files.setdefault(_stem(file, labels), file)
        if other != file:
            raise DataError(f"{other} and {file.name} are labels of the same image: keep one")
    pairs = [(image, label_files.get(_stem(image, images))) for image in images_under(images)]
    if pairs and not any(label for _, label in pairs):
        first = labels / f"{_stem(pairs[0][0], images)}.png"
        raise DataError(f"no image under {images} has a label under {labels}; the first would have {first}")
    paired = {_stem(image, images) for image, _ in pairs}
    return pairs, [file for stem, file in label_files.items() if stem not in paired]


def _stem(file: StoragePath, root: StoragePath) -> str:
    return os.path.splitext(file.relative_to(root))[0]


def require_records(records: Iterator[SourceRecord], root: StoragePath) -> Iterator[SourceRecord]:
    """Yield `records`. Raises DataError at the end if there were none."""
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise DataError(f"{root}: no images found; they are known by their suffix ({', '.join(IMAGE_SUFFIXES)})")
