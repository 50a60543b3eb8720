"""Images without labels, in a folder and the folders below it: a pool.

Files without the suffix of an image and hidden files and folders are skipped. Links are followed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pipeline.recipe.source import SourceConfig
from pipeline.sources import SourceRecord
from pipeline.sources._detection import is_readable
from pipeline.sources._files import FileSource, read_image
from pipeline.storage.path import StoragePath, require_exists
from pipeline.stores.labels import LabelSpace


class Config(SourceConfig):
    """A folder of images; all of them belong to the split `train`."""

    kind: Literal["folder"] = "folder"
    path: str
    """Folder or URL."""


class Source(FileSource):
    """Reads the folder. Raises ConfigError if it does not exist."""

    def __init__(self, config: Config) -> None:
        root = require_exists(StoragePath.of(config.path), "path", "folder")
        super().__init__(root, [root])

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        return {} if is_readable(lambda: cls(Config(path=path))) else None

    def spaces(self) -> dict[str, LabelSpace]:
        return {}

    def read_records(self) -> Iterator[SourceRecord]:
        for file in self.images_in(self.root):
            yield SourceRecord(
                file.relative_to(self.root), "train", functools.partial(read_image, file), stamp=file.stamp
            )
