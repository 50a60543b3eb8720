"""Formats that images and true labels come in: one file each; the file's name is the `kind` in the recipe.

A file `pipeline/sources/<kind>.py` holds a class `Config(SourceConfig)`, the keys of the recipe, and a class
`Source(BaseSource)` that reads it. Nothing else has to be told about it. No torch in here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import ConfigError, DataError
from pipeline.stores.labels import LabelSpace, Value
from pipeline.storage.path import Place, shown, subfolders, walk

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
Share = Annotated[float, Field(ge=0, le=1)]
Stamp = tuple[int, int]
"""Size in bytes and mtime in ns of a file, or what `Place.stamp` has for a remote one."""


class SourceConfig(BaseModel):
    """What every set of images can state in the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: str
    """The format: the name of a file in `pipeline/sources/`."""
    max_bad: Share = 0.05
    """The share of unusable files above which reading the set fails."""


@dataclasses.dataclass
class Truth:
    """True labels of one image by task, and notes on what had to be dropped or clipped (each one is counted)."""

    values: dict[str, Value] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Record:
    """One image of a set.

    `name` is unique in the set and tells a user which file it is (a relative path). `read` returns the image's own
    bytes. `truth` takes (width, height) in pixels of the upright image (EXIF orientation applied) and returns its
    labels, in that image's coordinates. Both raise DataError on a file that can't be used: the image is then
    quarantined with the error's text. `stamp` is that of the file that the image is or lies in, None where there is
    no file: an image whose name and stamp are known is not read again.
    """

    name: str
    split: Split
    read: Callable[[], bytes]
    truth: Callable[[tuple[int, int]], Truth] = lambda size: Truth()
    stamp: Callable[[], Stamp | None] = lambda: None


class BaseSource(ABC):
    """A set of images, opened. Opening checks the paths (ConfigError) but reads no image."""

    @abstractmethod
    def spaces(self) -> dict[str, LabelSpace]:
        """The label space of every task the set has labels for; {} for a set without labels."""

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """All images, in an order that depends on their names alone."""

    @abstractmethod
    def stamp(self) -> list[tuple[str, int, int]]:
        """(name, size in bytes, mtime in ns) of every file the result depends on, sorted: cheap, reads no file."""

    def count(self) -> int | None:
        """About how many records there are, where that is cheap to know: for the progress bar."""
        return None

    def problems(self) -> list[tuple[str, str]]:
        """(name, reason) of files found unusable while listing, for the quarantine; valid after `records`."""
        return []


def stamp_files(root: Place, files: Iterable[Place]) -> list[tuple[str, int, int]]:
    """The stamp of `files`, named relative to `root`."""
    return sorted((file.under(root), *file.stamp()) for file in files)


def images_under(root: Place) -> Iterator[Place]:
    """The files of `walk` that have the suffix of an image, whatever is in them."""
    return (file for file in walk(root) if file.suffix in IMAGE_SUFFIXES)


def count_images(root: Place) -> int:
    """How many files `images_under` finds."""
    return sum(1 for _ in images_under(root))


def has_split_folders(root: Place) -> bool:
    """Whether the folders right below `root` are splits (train, val, test), not classes.

    They are if all of them are named so. One such name among others is taken for a class (a train); several among
    others raise DataError.
    """
    names = [folder.name for folder in subfolders(root)]
    others = [shown(name) for name in names if split_named(name) is None]
    if others and len(names) - len(others) > 1:
        raise DataError(f"{root} holds split folders, but also {', '.join(others)}: move these or the splits out")
    return bool(names) and not others


def split_named(name: str) -> Split | None:
    """The split that a folder or a column calls `name`, if it is one."""
    return SPLIT_NAMES.get(name.lower())


def split_in_path(name: str) -> Split | None:
    """The split that a path names, its last part first: `train-00000-of-00005.parquet`, `validation/part.3.tar`."""
    for part in reversed(name.split("/")):
        for word in re.split(r"[^A-Za-z]+", part):
            if split := split_named(word):
                return split
    return None


def split_by_hash(name: str, hold_out: float) -> Split:
    """`test` for a share `hold_out` of all names, else `train`: by the name's hash, so new images move no old one."""
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return "test" if draw < hold_out * 2**64 else "train"


def number_classes(names: Mapping[int, str]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Sparse ids with their names -> the distinct names in order of their first id, and each id's place among them."""
    classes = tuple(dict.fromkeys(names[number] for number in sorted(names)))
    place = {name: index for index, name in enumerate(classes)}
    return classes, {number: place[name] for number, name in names.items()}


def check_distinct(classes: Sequence[str]) -> None:
    """Raise DataError, naming both, if two classes differ only by case or by how accents are encoded."""
    seen: dict[str, str] = {}
    for name in classes:
        first = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if first != name:
            raise DataError(f"the classes {first!r} and {name!r} differ only by case or accents: rename or join one")


def class_index(label: object, classes: Sequence[str]) -> int:
    """The place among `classes` of a label as files hold it: a name, or a number (in digits or not) from 0.

    Raises DataError if it is neither.
    """
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if isinstance(label, int | str) and re.fullmatch(r"\d+", str(label)) and int(label) < len(classes):
        return int(label)
    raise DataError(f"label {label!r} is not among the {len(classes)} classes: {', '.join(classes[:10])}, ...")


def class_truth(index: int, count: int, size: tuple[int, int]) -> Truth:
    """The truth of an image of class `index` of `count`, whatever its size."""
    probs = np.zeros(count, np.float32)
    probs[index] = 1
    return Truth({"classification": {"probs": probs}})


def check_size(stated: tuple[int, int], image: tuple[int, int], what: str) -> None:
    """Raise DataError, naming both sizes (width, height), unless `what` is of the size of the upright image."""
    if stated == image:
        return
    text = f"{what} {stated[0]}x{stated[1]}, the upright image {image[0]}x{image[1]}"
    if stated == image[::-1]:
        text += ": that is the image before the rotation that its EXIF asks for; rotate the label, or drop the EXIF"
    raise DataError(text)


def pair(images: Place, labels: Place) -> tuple[list[tuple[Place, Place | None]], list[Place]]:
    """Images with the label file of the same relative name but for the suffix, if any; and labels without an image.

    Raises DataError if no image has a label, or one has two; ConfigError if one folder lies in the other.
    """
    ends = (f"{images.path}/", f"{labels.path}/")
    if ends[0].startswith(ends[1]) or ends[1].startswith(ends[0]):
        raise ConfigError(f"{images} and {labels} lie in one another; give images and labels a folder each")
    found: dict[str, Place] = {}
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


def _stem(file: Place, root: Place) -> str:
    return os.path.splitext(file.under(root))[0]


def at_least_one(records: Iterator[Record], root: Place) -> Iterator[Record]:
    """`records`, or DataError if there are none."""
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise DataError(f"{root}: no images found; they are known by their suffix ({', '.join(IMAGE_SUFFIXES)})")
