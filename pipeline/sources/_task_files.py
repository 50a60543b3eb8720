"""Sets in one file of an annotation tool, or in several: the images that they name, their boxes and their splits."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pipeline.errors import ConfigError, DataError, error_context
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources import SourceRecord, TrueLabels
from pipeline.sources._boxes import BoxShape, box_labels
from pipeline.sources._classes import check_distinct
from pipeline.sources._files import FileSource, check_size, read_image
from pipeline.sources._image_index import ImageIndex
from pipeline.sources._splits import Split, hold_out_share, split_of_folder
from pipeline.storage.path import StoragePath, require_exists, walk
from pipeline.stores.labels import LabelSpace

Size = tuple[int, int]
UNNAMED = "that no file names"


class TaskFileConfig(SourceConfig):
    """The keys that the formats of annotation tools have in common."""

    path: str
    """Folder or URL."""
    annotations: tuple[str, ...] = ()
    """The tool's files, relative to `path`. By default all in it that are the tool's by their content."""
    images: str = "."
    """Folder of the images, relative to `path`. They are looked for by the ends of their names, so that it matters
    little where the tool had them."""
    classes: tuple[str, ...] = ()
    """Names of the classes of boxes in order; by default as the files list them, or else all that occur, sorted."""
    hold_out: Share = 0.2
    """Where the files and folders state no split but train: the share that becomes `test`, by the hash of the file's
    name."""


@dataclasses.dataclass(frozen=True)
class AnnotatedImage:
    """An image, and the marks that a file has of it."""

    place: str
    """Which one it is in the file: "image 7"."""
    names: tuple[str, ...]
    """What the image may be called, the likeliest first."""
    shapes: tuple[BoxShape, ...] | None
    """Its boxes; None if it was not labelled."""
    size: Size | None = None
    """(width, height) in pixels that the file states."""
    split: Split | None = None
    notes: tuple[str, ...] = ()
    choices: tuple[tuple[str, str], ...] = ()
    """Classes of the whole image, each with the name of what it was chosen for."""


class TaskFileSource(FileSource):
    """Base class of sets whose images are named by files of an annotation tool.

    A subclass says how a file is recognised and read. Raises ConfigError if a path does not exist.
    """

    suffix: ClassVar[str]
    """Of the tool's files."""

    def __init__(self, config: TaskFileConfig) -> None:
        self.task_config = config
        root = require_exists(StoragePath.of(config.path), "path", "folder")
        folder = require_exists(root / config.images, "images", "folder")
        stated = [require_exists(root / name, "annotations", "file") for name in config.annotations]
        files = stated or self.find_own(root)
        if not files:
            raise ConfigError(f"path: no {self.suffix} file of this kind in {root}; state the files as `annotations`")
        super().__init__(root, [folder], files)

    @classmethod
    def find_own(cls, root: StoragePath) -> list[StoragePath]:
        """Return the files below a folder that are the tool's."""
        return [file for file in walk(root) if file.suffix == cls.suffix and cls.is_own(file)]

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        """Return the tool's files in a folder as the key `annotations`, so that no plan has to look for them."""
        root = StoragePath.of(path)
        return {"annotations": [file.relative_to(root) for file in files]} if (files := cls.find_own(root)) else None

    @classmethod
    @abstractmethod
    def is_own(cls, file: StoragePath) -> bool:
        """Return True if a file of the suffix is the tool's. It is read no further than that needs."""

    @abstractmethod
    def read_file(self, file: StoragePath) -> tuple[Sequence[str], Sequence[AnnotatedImage]]:
        """Return the classes that a file lists, none if it lists none, and its images. Raises DataError."""

    @functools.cached_property
    def _content(self) -> list[tuple[StoragePath, Sequence[str], Sequence[AnnotatedImage]]]:
        content = []
        for file in self.files:
            with error_context(str(file)):
                content.append((file, *self.read_file(file)))
        return content

    @property
    def entries(self) -> Iterator[AnnotatedImage]:
        """The images of all files."""
        return (entry for *_, entries in self._content for entry in entries)

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of boxes, in order; none if there are neither boxes nor lists of classes."""
        shapes = [shape for entry in self.entries for shape in entry.shapes or ()]
        occurring = {shape.label for shape in shapes if isinstance(shape.label, str)}
        listed = dict.fromkeys(name for _, names, _ in self._content for name in names)
        return self.task_config.classes or (*listed, *sorted(occurring - set(listed)))

    def spaces(self) -> dict[str, LabelSpace]:
        check_distinct(self.classes)
        return {"detection": LabelSpace("detection", self.classes)} if self.classes else {}

    def read_records(self) -> Iterator[SourceRecord]:
        index = ImageIndex(self.images_in(self.folders[0]), self.folders[0])
        called = collections.Counter(_file_name(entry) for entry in self.entries)
        found: dict[str, tuple[StoragePath, AnnotatedImage]] = {}
        self.stray_annotations = 0
        for file, _, entries in self._content:
            for entry in entries:
                place = f"{file.relative_to(self.root)} {entry.place}"
                try:
                    image = index.find(*entry.names, loose=called[_file_name(entry)] == 1)
                except DataError as error:
                    self._leave_out(entry, place, str(error))
                    continue
                name = image.relative_to(self.root)
                if found.setdefault(name, (image, entry))[1] is not entry:
                    self._leave_out(entry, name, f"listed twice, the second time by {place}")
        for image in index.images:
            if image.relative_to(self.root) not in found:
                self.skipped[f"{image.suffix} {UNNAMED}"] += 1
        splits = self._splits({name: entry for name, (_, entry) in found.items()})
        for name in sorted(found):
            image, entry = found[name]
            truth = functools.partial(self.truth, entry)
            if split := splits[name]:
                yield SourceRecord(name, split, functools.partial(read_image, image), truth, image.stamp)
            else:
                self.problems.append((name, "no split is stated, as of others"))

    def _leave_out(self, entry: AnnotatedImage, name: str, reason: str) -> None:
        self.stray_annotations += len(entry.shapes or ())
        self.problems.append((name, reason))

    def _splits(self, entries: Mapping[str, AnnotatedImage]) -> dict[str, Split | None]:
        stated = {name: entry.split or split_of_folder(name) for name, entry in entries.items()}
        return hold_out_share(stated, self.task_config.hold_out)

    def truth(self, entry: AnnotatedImage, size: Size) -> TrueLabels:
        """Return the labels of an image of (width, height), which has to be the size that the file states."""
        if entry.size:
            check_size(entry.size, size, "the annotations say")
        if entry.shapes is None:
            return TrueLabels(notes=["not labelled"])
        truth = box_labels(entry.shapes, self.classes, size) if self.classes else TrueLabels()
        truth.notes.extend(entry.notes)
        return truth

    def count(self) -> int:
        return sum(len(entries) for *_, entries in self._content)


def _file_name(entry: AnnotatedImage) -> str:
    return re.split(r"[/\\]", entry.names[-1])[-1]
