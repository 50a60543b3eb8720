"""A teacher's label shards in the root: which are there, what is known of each, and how a new one comes there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.root import Root, hash_file, in_parallel
from pipeline.stores.images import ImageShard


class Facts(TypedDict):
    """A label shard's size in bytes, its hash, and how many of its images could not be labelled."""

    size: int
    sha256: str
    failed: int


@dataclasses.dataclass
class LabelFolder:
    """The folder `path` in the root, and the facts about files in it that are whole, by their paths in the root."""

    root: Root
    path: str
    facts: dict[str, Facts] = dataclasses.field(default_factory=dict)

    def file(self, shard: ImageShard) -> str:
        """Where the labels of an image shard are in the root."""
        return f"{self.path}/{shard.address}.parquet"

    def look(self, shards: Iterable[ImageShard]) -> None:
        """Learn which of these are labelled. One listing tells what is there; what is new is read to see whether it is
        readable and of the right length.
        """
        there = {f"{self.path}/{name}": size for name, size in (self.root / self.path).files().items()}
        self.facts = {path: facts for path, facts in self.facts.items() if there.get(path) == facts["size"]}
        new = there.keys() - self.facts.keys()
        in_parallel(self._examine, [shard for shard in shards if self.file(shard) in new])

    def _examine(self, shard: ImageShard) -> None:
        path = self.file(shard)
        found = read_facts(self.root.download(path), len(shard))
        if found:
            self.facts[path] = found
            self.root.add_to_cache(path, found)

    def has(self, shard: ImageShard) -> bool:
        """Whether the labels of an image shard are there, as far as `look` and `publish` know."""
        return self.file(shard) in self.facts

    def facts_of(self, shard: ImageShard) -> Facts:
        """What is known of the labels of an image shard, which are there."""
        return self.facts[self.file(shard)]

    def publish(self, shard: ImageShard) -> None:
        """The labels of a shard were just written, whole, where `root.local_path` says: now they are in the root."""
        path = self.file(shard)
        found = read_facts(self.root.local_path(path), len(shard))
        assert found, f"{path} was written whole"
        self.root.publish(path, found)
        self.facts[path] = found


def read_facts(path: Path, rows: int) -> Facts | None:
    """What there is to know of a label file of this machine; None if it is damaged or has another number of rows."""
    try:
        status = pq.read_table(path, columns=["status"]).column("status").to_pylist()
    except (OSError, pa.ArrowInvalid):
        return None
    if len(status) != rows:
        return None
    return {"size": path.stat().st_size, "sha256": hash_file(path), "failed": status.count("failed")}
