"""Incremental ingest: reuse what earlier readings of a set know of its files, and the image shards that they wrote.

Two readings are earlier: the set's previous artifact, and an interrupted attempt at this one, which left shards and
file notes in `work`. Images are looked up by key, so it does not matter which of the two holds them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.sources import Stamp, TrueLabels
from pipeline.sources._splits import SPLITS
from pipeline.steps.artifact import LOG, WORK, Artifact
from pipeline.storage.parquet import explain_parquet_errors
from pipeline.storage.root import hash_file, in_parallel
from pipeline.stores.images import ImageShard, local_shard, write_table

SOURCES_FILE = f"{LOG}/sources.parquet"
"""In `log`, which is not part of an artifact's digest: the same images with new time stamps are the same set."""
PARTS_FOLDER = f"{WORK}/sources"
Size = tuple[int, int]
"""(width, height) in pixels of the upright image."""
SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False, metadata={"about": "the file, or the place in a file"}),
        pa.field("size", pa.int64(), nullable=False, metadata={"about": "of the file, bytes"}),
        pa.field("mtime", pa.int64(), nullable=False, metadata={"about": "ns; of a remote file, a hash of its state"}),
        pa.field("key", pa.string(), metadata={"about": "of the image, null if it is none"}),
        pa.field("reason", pa.string(), metadata={"about": "why it is no image"}),
    ]
)


class KnownFile(NamedTuple):
    """The content of a file: an image with this key, or, for the reason given, no image."""

    key: str | None
    reason: str | None


class SourceIndex:
    """The files of a source by name and stamp, as earlier readings and this one found them.

    New entries are written to `work` after every `flush_every` files, where they survive an interruption.
    """

    def __init__(self, out: Path, previous: Artifact | None, flush_every: int) -> None:
        self._folder, self._flush_every = out / PARTS_FOLDER, flush_every
        self._folder.mkdir(parents=True, exist_ok=True)
        parts = sorted(self._folder.glob("*.parquet"))
        tables = [_read_index(previous)] if previous and previous.has(SOURCES_FILE) else []
        self._earlier = pa.concat_tables([SCHEMA.empty_table(), *tables, *map(_read, parts)]).combine_chunks()
        self._rows = {name: row for row, name in enumerate(self._earlier.column("source").to_pylist())}
        self._stamps = np.stack([self._earlier.column(name).to_numpy() for name in ("size", "mtime")], axis=1)
        self._unchanged = np.zeros(len(self._earlier), np.bool_)
        self._part_count, self._new_tables = len(parts), [SCHEMA.empty_table()]
        self._pending: list[dict[str, Any]] = []

    def find(self, name: str, stamp: Stamp | None) -> KnownFile | None:
        """Return what the file holds if an earlier reading saw it with this stamp."""
        row = self._rows.get(name)
        if row is None or stamp is None or tuple(self._stamps[row].tolist()) != stamp:
            return None
        return KnownFile(*(self._earlier.column(column)[row].as_py() for column in ("key", "reason")))

    def mark_unchanged(self, name: str) -> None:
        """Keep the earlier entry of a file."""
        self._unchanged[self._rows[name]] = True

    def add(self, name: str, stamp: Stamp, known: KnownFile) -> None:
        """Add the entry of a file that was read."""
        self._pending.append(dict(zip(SCHEMA.names, (name, *stamp, *known), strict=True)))
        if len(self._pending) >= self._flush_every:
            self._flush()

    def _flush(self) -> None:
        self._new_tables.append(pa.Table.from_pylist(self._pending, schema=SCHEMA))
        write_table(self._folder / f"{self._part_count:06d}.parquet", self._new_tables[-1])
        self._part_count += 1
        self._pending = []

    def write(self, out: Path) -> None:
        """Write the index of the unchanged and the new files, for the next reading."""
        self._flush()
        (out / LOG).mkdir(exist_ok=True)
        write_table(out / SOURCES_FILE, pa.concat_tables([self._earlier.filter(self._unchanged), *self._new_tables]))


def _read_index(previous: Artifact) -> pa.Table:
    try:
        return previous.load(SOURCES_FILE, _read)
    except DataError:  # it has changed
        return SCHEMA.empty_table()


def _read(path: Path) -> pa.Table:
    try:
        with explain_parquet_errors(path, "list of files", ""):
            return pq.read_table(path, schema=SCHEMA, page_checksum_verification=True)
    except DataError:
        return SCHEMA.empty_table()  # then the files are read again


class SourceMatch(NamedTuple):
    """A record of the source whose image is in an earlier shard."""

    number: int
    """Its position in the source."""
    name: str
    truth: Callable[[Size], TrueLabels]


@dataclasses.dataclass(frozen=True)
class ExistingShard:
    """An image shard of an earlier reading: sealed in the previous artifact, or in `work`."""

    split: str
    shard: ImageShard
    images: int
    """How many it holds."""

    @property
    def name(self) -> str:
        return self.shard.name

    @functools.cached_property
    def sha256(self) -> str:
        return self.shard.sha256 or hash_file(Path(self.shard.tar.path))

    @property
    def sealed(self) -> bool:
        return bool(self.shard.sha256)


class PreviousShards:
    """The shards of earlier readings, and the records of the source that match their images.

    Shards in `work` come first: an image that is also in a shard of the previous artifact was taken from there when
    that shard was repacked.
    """

    def __init__(self, out: Path, previous: Artifact | None, name: str) -> None:
        self.shards: list[ExistingShard] = []
        self._matches: dict[str, dict[str, tuple[SourceMatch, ...]]] = {split: {} for split in SPLITS}
        for split in SPLITS:
            shards = [local_shard(tar) for tar in finished_tars(out / WORK, split)]
            shards += [image_shard(previous, tar) for tar in shard_tars(previous, split)] if previous else []
            try:
                indexes = in_parallel(lambda shard: shard.columns("key"), shards)
            except DataError as error:
                raise DataError(
                    f"{error} `must run` with --force data.{name} reads everything from the source again."
                ) from error
            for shard, index in zip(shards, indexes, strict=True):
                self._matches[split].update(dict.fromkeys(index.column("key").to_pylist(), ()))
                self.shards.append(ExistingShard(split, shard, len(index)))

    def has(self, split: str, key: str) -> bool:
        """Return True if the image is in a shard of the split."""
        return key in self._matches[split]

    def add_match(self, split: str, key: str, match: SourceMatch) -> None:
        """Add a record whose image is in a shard of the split; of several records the first counts."""
        self._matches[split][key] += (match,)

    def pop_matches(self, shard: ExistingShard) -> Iterator[tuple[tuple[SourceMatch, ...], Size]]:
        """Yield the matches and the size of every image of the shard, in order, and forget the matches."""
        columns = shard.shard.columns("key", "width", "height").to_pydict().values()
        for key, width, height in zip(*columns, strict=True):
            yield self._matches[shard.split].pop(key, ()), (width, height)


def finished_tars(work: Path, split: str) -> list[Path]:
    """Return the shards of a split that are complete in `work`, in order."""
    return sorted((work / "images" / split).glob("shard-*.tar"))


def shard_tars(artifact: Artifact, split: str) -> list[str]:
    """Return the paths in an ingested set's artifact of a split's image shards, in order."""
    folder = f"images/{split}/"
    return sorted(name for name in artifact.manifest["files"] if name.startswith(folder) and name.endswith(".tar"))


def image_shard(artifact: Artifact, tar: str) -> ImageShard:
    """Return an image shard of an ingested set, by the path of its tar in the artifact."""
    return ImageShard(artifact.file(tar), artifact.file(f"{tar.removesuffix('.tar')}.parquet"))
