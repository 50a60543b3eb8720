"""Images without labels, in a folder and the folders below it: a pool.

Files without the suffix of an image are passed over, and so is what is hidden. Links are followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pipeline.recipe.source import SourceConfig
from pipeline.sources import BaseSource, SourceRecord
from pipeline.sources._files import at_least_one, count_images, images_under, stamp_files
from pipeline.storage.path import StoragePath, existing
from pipeline.stores.labels import LabelSpace


class Config(SourceConfig):
    """A folder of images; all of them belong to the split `train`."""

    kind: Literal["folder"] = "folder"
    path: str
    """Folder or URL."""


class Source(BaseSource):
    """Opens the folder. Raises ConfigError if it is not there."""

    def __init__(self, config: Config) -> None:
        self.root = existing(StoragePath.of(config.path), "path", "folder")

    def spaces(self) -> dict[str, LabelSpace]:
        return {}

    def records(self) -> Iterator[SourceRecord]:
        found = images_under(self.root)
        records = (SourceRecord(file.under(self.root), "train", file.read, stamp=file.stamp) for file in found)
        return at_least_one(records, self.root)

    def count(self) -> int:
        return count_images(self.root)

    def stamp(self) -> list[tuple[str, int, int]]:
        return stamp_files(self.root, images_under(self.root))
