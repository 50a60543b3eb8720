"""Folder of one teacher's label shards in the root: which are complete, their facts, and how new ones are published."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

import tasks
from pipeline.errors import DataError
from pipeline.storage.parquet import explain_parquet_errors, open_parquet
from pipeline.storage.root import Root, hash_file, in_parallel
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import APPLICABILITY, INAPPLICABLE


class ShardFacts(TypedDict):
    """A label shard's size in bytes, its sha256, how many of its images could not be labelled, and of how many the
    applicability is below INAPPLICABLE; None where it is not known.
    """

    size: int
    sha256: str
    failed: int
    inapplicable: int | None


@dataclasses.dataclass
class LabelFolder:
    """The folder `path` in the root.

    `facts` of label shards by their paths in the root may be of many folders, until `refresh` keeps those of its own
    complete shards.
    """

    root: Root
    path: str
    facts: dict[str, ShardFacts] = dataclasses.field(default_factory=dict)

    def path_of(self, shard: ImageShard) -> str:
        """Return the path in the root of an image shard's labels."""
        return f"{self.path}/{shard.address}.parquet"

    def refresh(self, shards: Iterable[ImageShard]) -> None:
        """Find out which of these shards are labelled.

        The folder is listed once. Files that are new or have another size are read, to check that they are complete.
        """
        sizes = {f"{self.path}/{name}": size for name, size in (self.root / self.path).files().items()}
        self.facts = {path: facts for path, facts in self.facts.items() if sizes.get(path) == facts["size"]}
        new = sizes.keys() - self.facts.keys()
        in_parallel(self._examine, [shard for shard in shards if self.path_of(shard) in new])

    def _examine(self, shard: ImageShard) -> None:
        path = self.path_of(shard)
        facts = read_facts(self.root.download(path), len(shard))
        if facts:
            self.facts[path] = facts
            self.root.add_to_cache(path, facts)

    def has(self, shard: ImageShard) -> bool:
        """Return True if an image shard was labelled at the last `refresh`, or published since."""
        return self.path_of(shard) in self.facts

    def facts_of(self, shard: ImageShard) -> ShardFacts:
        """Return the facts of a labelled image shard's labels."""
        return self.facts[self.path_of(shard)]

    def publish(self, shard: ImageShard) -> None:
        """Put the labels of a shard, which were written to `root.local_path`, into the root."""
        path = self.path_of(shard)
        facts = read_facts(self.root.local_path(path), len(shard))
        assert facts, f"{path} was written completely"
        self.root.publish(path, facts)
        self.facts[path] = facts


def read_facts(path: Path, rows: int) -> ShardFacts | None:
    """Read the facts of a local label file; None if it is damaged, of another version, or has not so many rows."""
    try:
        with explain_parquet_errors(path, "label shard", ""), open_parquet(path) as parquet:
            tasks.label_of_file(parquet.schema_arrow, path)
            table = parquet.read(["status", APPLICABILITY.name])
    except DataError:
        return None
    if len(table) != rows or APPLICABILITY.name not in table.column_names:
        return None
    return {
        "size": path.stat().st_size,
        "sha256": hash_file(path),
        "failed": table.column("status").to_pylist().count("failed"),
        "inapplicable": _count_inapplicable(table.column(APPLICABILITY.name)),
    }


def _count_inapplicable(applicability: pa.ChunkedArray) -> int | None:
    known = applicability.drop_null()
    return pc.sum(pc.less(known, INAPPLICABLE)).as_py() if len(known) else None
