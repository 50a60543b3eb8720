"""Files of a source: which are images, and which belong together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord
from pipeline.storage.path import StoragePath, walk

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


def stamp_files(root: StoragePath, files: Iterable[StoragePath]) -> list[tuple[str, int, int]]:
    """The stamp of `files`, named relative to `root`."""
    return sorted((file.under(root), *file.stamp()) for file in files)


def images_under(root: StoragePath) -> Iterator[StoragePath]:
    """The files of `walk` that have the suffix of an image, whatever is in them."""
    return (file for file in walk(root) if file.suffix in IMAGE_SUFFIXES)


def count_images(root: StoragePath) -> int:
    """How many files `images_under` finds."""
    return sum(1 for _ in images_under(root))


def check_size(stated: tuple[int, int], image: tuple[int, int], what: str) -> None:
    """Raise DataError, naming both sizes (width, height), unless `what` is of the size of the upright image."""
    if stated == image:
        return
    text = f"{what} {stated[0]}x{stated[1]}, the upright image {image[0]}x{image[1]}"
    if stated == image[::-1]:
        text += ": that is the image before the rotation that its EXIF asks for; rotate the label, or drop the EXIF"
    raise DataError(text)


def pair(
    images: StoragePath, labels: StoragePath
) -> tuple[list[tuple[StoragePath, StoragePath | None]], list[StoragePath]]:
    """Images with the label file of the same relative name but for the suffix, if any; and labels without an image.

    Raises DataError if no image has a label, or one has two; ConfigError if one folder lies in the other.
    """
    ends = (f"{images.path}/", f"{labels.path}/")
    if ends[0].startswith(ends[1]) or ends[1].startswith(ends[0]):
        raise ConfigError(f"{images} and {labels} lie in one another; give images and labels a folder each")
    found: dict[str, StoragePath] = {}
    for file in images_under(labels):
        other = found.setdefault(_stem(file, labels), file)
        if other != file:
            raise DataError(f"{other} and {file.name} are labels of the same image: keep one")
    pairs = [(image, found.get(_stem(image, images))) for image in images_under(images)]
    if pairs and not any(label for _, label in pairs):
        first = labels / f"{_stem(pairs[0][0], images)}.png"
        raise DataError(f"no image under {images} has a label under {labels}; the first would have {first}")
    used = {_stem(image, images) for image, _ in pairs}
    return pairs, [file for stem, file in found.items() if stem not in used]


def _stem(file: StoragePath, root: StoragePath) -> str:
    return os.path.splitext(file.under(root))[0]


def at_least_one(records: Iterator[SourceRecord], root: StoragePath) -> Iterator[SourceRecord]:
    """`records`, or DataError if there are none."""
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise DataError(f"{root}: no images found; they are known by their suffix ({', '.join(IMAGE_SUFFIXES)})")
