"""Formats that images and true labels come in: one file each; the file's name is the `kind` in the recipe.

A file `pipeline/sources/<kind>.py` holds a class `Config(SourceConfig)`, the keys of the recipe, and a class
`Source(BaseSource)` that reads it. Nothing else has to be told about it. No torch in here.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from pipeline.sources._splits import Split
from pipeline.stores.labels import LabelSpace, Value

Stamp = tuple[int, int]
"""Size in bytes and mtime in ns of a file, or what `Place.stamp` has for a remote one."""


@dataclasses.dataclass
class TrueLabels:
    """True labels of one image by task, and notes on what had to be dropped or clipped (each one is counted)."""

    values: dict[str, Value] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class SourceRecord:
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
    truth: Callable[[tuple[int, int]], TrueLabels] = lambda size: TrueLabels()
    stamp: Callable[[], Stamp | None] = lambda: None


class BaseSource(ABC):
    """A set of images, opened. Opening checks the paths (ConfigError) but reads no image."""

    @abstractmethod
    def spaces(self) -> dict[str, LabelSpace]:
        """The label space of every task the set has labels for; {} for a set without labels."""

    @abstractmethod
    def records(self) -> Iterator[SourceRecord]:
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
