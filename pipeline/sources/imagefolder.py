"""Images sorted into one folder per class: `<split>/<class>/...`, or `<class>/...` without splits.

The folders right below the root are splits if all of them are named train, val, test or the like; otherwise they are
classes, and a share of each class is held out. Images in deeper folders belong to the class above. Classes are the
folders of all splits, sorted by name. An empty folder is a class too, so that its first image renumbers no other class.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Literal

from pipeline.errors import DataError
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources import SourceRecord
from pipeline.sources._classes import check_distinct, one_hot_label
from pipeline.sources._files import FileSource, read_image
from pipeline.storage.path import StoragePath, printable, require_exists, subfolders
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

    @functools.cached_property
    def _classes(self) -> tuple[str, ...]:
        parents = subfolders(self.root) if self._in_splits else [self.root]
        classes = sorted({printable(folder.name) for parent in parents for folder in subfolders(parent)})
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
