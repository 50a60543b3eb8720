"""Images sorted into one folder per class: `<split>/<class>/...`, or `<class>/...` without splits.

The folders right below the root are splits if all of them are named train, val, test or the like; otherwise they are
classes, and a share of each class is held out. Images in deeper folders belong to the class above. Classes are the
folders of all splits, sorted by name. An empty folder is a class too, so that its first image renumbers no other class.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pipeline.errors import DataError
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources import SourceRecord
from pipeline.sources._classes import check_distinct, one_hot_label
from pipeline.sources._detection import is_readable
from pipeline.sources._files import FileSource, images_under, read_image
from pipeline.sources._pairs import are_images_and_labels
from pipeline.storage.path import StoragePath, printable, require_exists, subfolders, walk
from pipeline.stores.labels import LabelSpace


class Config(SourceConfig):
    """Folders named by class, with or without folders named by split above them."""

    kind: Literal["imagefolder"] = "imagefolder"
    path: str
    """Folder or URL."""
    hold_out: Share = 0.2
    """Without split folders: the share of each class that becomes `test`, drawn by the hash of the file's name."""


class Source(FileSource):
    """Reads the folder. Raises ConfigError if it does not exist; later DataError on class names that are alike."""

    def __init__(self, config: Config) -> None:
        self.config = config
        root = require_exists(StoragePath.of(config.path), "path", "folder")
        super().__init__(root, [root])

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        """Return {} for folders that sort images: two or more, neither images beside their labels nor other files."""
        return {} if is_readable(lambda: cls(Config(path=path))) and cls(Config(path=path))._sorts_images() else None

    def _sorts_images(self) -> bool:
        by_parent = [subfolders(parent) for parent in self._parents]
        if any(map(are_images_and_labels, by_parent)):
            return False
        by_class: dict[str, list[StoragePath]] = {}
        for folder in itertools.chain.from_iterable(by_parent):
            by_class.setdefault(folder.name, []).append(folder)
        return len(by_class) > 1 and not any(map(_holds_other_files, by_class.values()))

    @property
    def _parents(self) -> list[StoragePath]:
        """The folders that class folders lie in."""
        return subfolders(self.root) if self._in_splits else [self.root]

    @functools.cached_property
    def _classes(self) -> tuple[str, ...]:
        classes = sorted({printable(folder.name) for parent in self._parents for folder in subfolders(parent)})
        if not classes:
            raise DataError(f"{self.root}: no class folders; expected <split>/<class>/ or <class>/ in it")
        check_distinct(classes)
        return tuple(classes)

    def spaces(self) -> dict[str, LabelSpace]:
        return {"classification": LabelSpace("classification", self._classes)}

    def read_records(self) -> Iterator[SourceRecord]:
        index = {name: number for number, name in enumerate(self._classes)}
        level = 1 if self._in_splits else 0
        for file in self.images_in(self.root):
            name = file.relative_to(self.root)
            folders = name.split("/")[:-1]
            if len(folders) <= level:
                self.problems.append((name, "lies in no class folder"))
                continue
            split, number = self._split(name, self.config.hold_out), index.get(folders[level])
            if split is None or number is None:
                raise DataError(f"{self.root}: {name} was added while the set was read; run again")
            truth = functools.partial(one_hot_label, number, len(index))
            yield SourceRecord(name, split, functools.partial(read_image, file), truth, file.stamp)

    def file_stamps(self) -> list[tuple[str, int, int]]:
        # classes without files, too, are part of the result
        return sorted([*((f"{name}/", 0, 0) for name in self._classes), *super().file_stamps()])


def _holds_other_files(folders: Iterable[StoragePath]) -> bool:
    """Return True if there are files in the folders of a class, but not one image: they may be labels."""
    images, files = (itertools.chain.from_iterable(map(find, folders)) for find in (images_under, walk))
    return next(images, None) is None and next(files, None) is not None
