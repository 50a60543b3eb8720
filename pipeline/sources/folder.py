"""Images without labels, in a folder and the folders below it: a pool.

Files without the suffix of an image and hidden files and folders are skipped. Links are followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pipeline.recipe.source import SourceConfig
from pipeline.sources import BaseSource, SourceRecord
from pipeline.sources._files import count_images, images_under, require_records, stamp_files
from pipeline.storage.path import StoragePath, require_exists
from pipeline.stores.labels import LabelSpace


class Config(SourceConfig):
    """A folder of images; all of them belong to the split `train`."""

    kind: Literal["folder"] = "folder"
    path: str
    """Folder or URL."""


class Source(BaseSource):
    """Reads the folder. Raises ConfigError if it does not exist."""

    def __init__(self, config: Config) -> None:
        self.root = require_exists(StoragePath.of(config.path), "path", "folder")

    def spaces(self) -> dict[str, LabelSpace]:
        return {}

    def records(self) -> Iterator[SourceRecord]:
        files = images_under(self.root)
        records = (SourceRecord(file.relative_to(self.root), "train", file.read, stamp=file.stamp) for file in files)
        return require_records(records, self.root)

    def count(self) -> int:
        return count_images(self.root)

    def file_stamps(self) -> list[tuple[str, int, int]]:
        return stamp_files(self.root, images_under(self.root))
