"""Readers of image and label formats: `kind: coco` of a recipe is the file `pipeline/sources/coco.py`.

A file holds `class Config(SourceConfig)`, the keys of the recipe, and `class Source(BaseSource)`, which reads the
format; there is nothing to register. Modules that begin with `_` are helpers. No torch in this package.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.data.bands import RGB
from pipeline.sources._splits import Split
from pipeline.stores.labels import LabelSpace, Value

Stamp = tuple[int, int]
"""(size in bytes, mtime in ns) of a file, as `StoragePath.stamp` returns it: a changed file has another stamp."""


@dataclasses.dataclass
class TrueLabels:
    """The true labels of one image.

    Example:
        TrueLabels({"depth": {"depth": metres}}, notes=["no normals: no intrinsics"])
    """

    values: dict[str, Value] = dataclasses.field(default_factory=dict)
    """Label by task: the arrays that `tasks/<task>/label.py` describes, with their shapes, dtypes and units."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Notes on labels that are missing or were dropped or clipped; they are counted and stored with the set."""
    annotations: int = 0
    """Number of the image's annotations, where it may have several: boxes."""
    dropped: int = 0
    """How many of them can't be used. If their share in the set is above `max_bad`, reading the set fails."""


@dataclasses.dataclass(frozen=True)
class SourceRecord:
    """One image of a set; its functions are called later, on threads.

    Example:
        SourceRecord("cat/1.jpg", "train", file.read, functools.partial(one_hot_label, 3, 10), file.stamp)
    """

    name: str
    """Unique in the set; tells a user which file it is: a path relative to the set, `train.tar#key`."""
    split: Split
    read: Callable[[], bytes]
    """Return the image file's own bytes, not decoded. Raises DataError if it can't be used: the image is then
    quarantined with the error's text."""
    truth: Callable[[tuple[int, int]], TrueLabels] = lambda size: TrueLabels()
    """Return the true labels, in pixels of the upright image (EXIF orientation applied), whose (width, height) it is
    given. Raises DataError as `read` does."""
    stamp: Callable[[], Stamp | None] = lambda: None
    """Return the stamp of the file that the image is or lies in, None if there is no file. An image whose name and
    stamp are those of an earlier ingest is not read again."""


class BaseSource(ABC):
    """A set of images, opened: `Source(config)` checks that the paths exist (ConfigError) but reads no image.

    Example:
        source = Source(Config(path="photos"))
        images = {record.name: record.read() for record in source.records()}
    """

    channels: int = RGB
    """Channels of its images, as the recipe states them; set by `ingest.ingest.open_source`."""

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        """Return the keys with which the folder `path` is read as this kind; None if it is none, as by default.

        `kind` and `path` are not among them. `must init` asks every kind. A folder whose layout is this kind's but
        whose files are damaged is one as well: reading it then says what is wrong.
        """
        return None

    @abstractmethod
    def spaces(self) -> dict[str, LabelSpace]:
        """Return the label space of every task that the set has labels for; {} for a set without labels.

        Raises DataError if the files that define the classes can't be used.
        """

    @abstractmethod
    def records(self) -> Iterator[SourceRecord]:
        """Yield all images, in an order that depends on their names alone. Raises DataError if there are none."""

    @abstractmethod
    def file_stamps(self) -> list[tuple[str, int, int]]:
        """Return (name, size in bytes, mtime in ns) of every file that the result depends on, sorted by name.

        Must be cheap, as every plan compares it with the previous one; no file is read.
        """

    def count(self) -> int | None:
        """Return about how many records there are, for the progress bar; None if that is not cheap to know."""
        return None

    @functools.cached_property
    def skipped(self) -> collections.Counter[str]:
        """Numbers of files, by suffix, that are not images by their suffix; `records` clears and fills it."""
        return collections.Counter()

    stray_annotations = 0
    """Number of annotations of images that the set does not list; `records` counts them. They count as dropped."""

    @functools.cached_property
    def problems(self) -> list[tuple[str, str]]:
        """(name, reason) of files that can't become records, for the quarantine; `records` clears and fills it."""
        return []
