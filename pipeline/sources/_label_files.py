"""Sets of boxes with a file of labels for each image: find both wherever they lie, pair them, and split them."""

from __future__ import annotations

import functools
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline.errors import DataError, MustError, error_context
from pipeline.sources import SourceRecord, TrueLabels
from pipeline.sources._boxes import BoxShape, box_labels
from pipeline.sources._classes import check_distinct
from pipeline.sources._files import IMAGE_SUFFIXES, FileSource, images_under, read_image, stamp_files
from pipeline.sources._splits import Split, splits_of_folders
from pipeline.storage.path import StoragePath, require_exists, walk
from pipeline.stores.labels import LabelSpace

PARALLEL_FOLDERS = frozenset(
    ("image", "images", "img", "imgs", "jpegimages", "photos", "label", "labels", "annotation", "annotations", "annot")
) | {"annots", "ann", "xml", "xmls", "json", "jsons", "txt", "labelme", "obj_train_data"}
"""Folders that hold one side of the pairs, in small letters: `train/images/a.jpg` belongs to `train/labels/a.txt`, or
to `labels/train/a.txt`."""
NO_SPLIT = "of no split that is stated"


class LabelFileSource(FileSource):
    """Base class of sets in which each image has a file of boxes.

    A subclass calls `super().__init__(path, suffix, hold_out, files)`, with the suffix of the files of labels and the
    files that are none of these, and says what a file means.
    """

    def __init__(self, path: str, suffix: str, hold_out: float, files: Sequence[StoragePath] = ()) -> None:
        root = require_exists(StoragePath.of(path), "path", "folder")
        super().__init__(root, [root], files)
        self.suffix, self.hold_out = suffix, hold_out

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The class names, in order."""

    @abstractmethod
    def read_shapes(self, file: StoragePath, size: tuple[int, int] | None) -> list[BoxShape]:
        """Return what a file of labels says of an image of (width, height), unknown if only the classes are asked for.

        Raises DataError if that is not clear.
        """

    def is_label(self, file: StoragePath) -> bool:
        """Return True if a file of the suffix, that belongs to no image, holds labels all the same."""
        return True

    def is_image(self, name: str) -> bool:
        """Return True unless an image, by its path in the set, is none of the set's."""
        return True

    def without_file(self, size: tuple[int, int]) -> TrueLabels:
        """Return what is known of an image that has no file of labels."""
        return TrueLabels(notes=["no file of labels"])

    def splits(self, names: Sequence[str]) -> Mapping[str, Split | None]:
        """Return the split of each image of the set, by its path in it; None where that is not stated."""
        return splits_of_folders(names, self.hold_out)

    def spaces(self) -> dict[str, LabelSpace]:
        check_distinct(self.classes)
        if not self.classes:
            raise DataError(f"{self.root}: no class is named; state them as `classes`")
        return {"detection": LabelSpace("detection", self.classes)}

    def file_stamps(self) -> list[tuple[str, int, int]]:
        return stamp_files(self.root, [*self.files, *filter(self._is_read, walk(self.root))])

    def _is_read(self, file: StoragePath) -> bool:
        is_image = file.suffix in IMAGE_SUFFIXES and self.is_image(file.relative_to(self.root))
        return is_image or file.suffix == self.suffix

    def count(self) -> int:
        return sum(1 for file in images_under(self.root) if self.is_image(file.relative_to(self.root)))

    def label_files(self) -> Iterator[StoragePath]:
        """Yield the files that may be labels, in the order of their paths."""
        return (file for file in walk(self.root) if file.suffix == self.suffix and file not in self.files)

    def read_records(self) -> Iterator[SourceRecord]:
        labels = _by_key(self.label_files(), self.root)
        found = ((file.relative_to(self.root), file) for file in self.images_in(self.root))
        images = {name: file for name, file in found if self.is_image(name)}
        _check_pairs(images, labels)
        self.skipped.pop(self.suffix, None)
        splits = self.splits(list(images))
        for name, file in images.items():
            if name not in splits:
                self.skipped[f"{file.suffix} {NO_SPLIT}"] += 1
            elif (split := splits[name]) is None:
                self.problems.append((name, "lies in no split's folder, as others do"))
            else:
                label = labels.get(pairing_key(name))
                truth = functools.partial(self._truth, label)
                yield SourceRecord(name, split, functools.partial(read_image, file), truth, file.stamp)
        self._list_unpaired(labels, images)

    def _list_unpaired(self, labels: Mapping[str, StoragePath], images: Iterable[str]) -> None:
        known = set(map(pairing_key, images))
        for key, file in labels.items():
            if key not in known:
                if self.is_label(file):
                    self.problems.append((file.relative_to(self.root), "a file of labels without an image"))
                else:
                    self.skipped[self.suffix] += 1

    def _truth(self, file: StoragePath | None, size: tuple[int, int]) -> TrueLabels:
        if file is None:
            return self.without_file(size)
        with error_context(file.relative_to(self.root)):
            return box_labels(self.read_shapes(file, size), self.classes, size)


def pairing_key(name: str) -> str:
    """Return what an image and its file of labels have in common, given the path of either in the set."""
    folders = [each for each in name.split("/")[:-1] if each.lower() not in PARALLEL_FOLDERS]
    return "/".join([*folders, os.path.splitext(name.rpartition("/")[2])[0]])


def _check_pairs(images: Mapping[str, StoragePath], labels: Mapping[str, StoragePath]) -> None:
    """Raise DataError if two images have one file of labels."""
    first: dict[str, StoragePath] = {}
    for name, image in images.items():
        key = pairing_key(name)
        if key in labels and (other := first.setdefault(key, image)) != image:
            raise DataError(f"{other} and {image} are images of the same labels, {labels[key]}: keep one")


def _by_key(files: Iterator[StoragePath], root: StoragePath) -> dict[str, StoragePath]:
    found: dict[str, StoragePath] = {}
    for file in files:
        other = found.setdefault(pairing_key(file.relative_to(root)), file)
        if other != file:
            raise DataError(f"{other} and {file} are labels of the same image: keep one")
    return found


def names_in_files(source: LabelFileSource) -> tuple[str, ...]:
    """Return the classes that occur in a set's files of labels, sorted; files that can't be read have none."""
    names: set[str] = set()
    for file in source.label_files():
        try:
            shapes = source.read_shapes(file, None)
        except MustError:
            continue
        names.update(shape.label for shape in shapes if isinstance(shape.label, str))
    return tuple(sorted(names))
