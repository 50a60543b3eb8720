"""`ShardPacker`: write images into shards with their true labels beside them, and list the records left out.

Earlier shards are kept as they are or repacked into new ones.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ingest.incremental import ExistingShard, finished_tars
from pipeline.sources._splits import SPLITS
from pipeline.steps.artifact import WORK
from pipeline.storage.parquet import write_parquet
from pipeline.storage.root import link_or_copy
from pipeline.stores.images import NewImage, ShardWriter, local_shard, write_table
from pipeline.stores.label_writer import LabelWriter, store_metadata
from pipeline.stores.labels import Label, Row

TRUTH = "truth"
DOWNLOAD_SHARE = 1 / 4
"""A remote shard that is repacked is downloaded whole if it fits this share of the cache: most images are read."""
LIST_SCHEMA = pa.schema([("source", pa.string()), ("split", pa.string()), ("reason", pa.string())])


@dataclasses.dataclass(frozen=True)
class PackedRecord:
    """A record of the source with its true labels, encoded by task."""

    number: int
    """Its position in the source."""
    name: str
    rows: Mapping[str, Row] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    """On labels that were clipped or dropped."""
    annotations: int = 0
    dropped: int = 0
    """How many of the annotations can't be used."""
    reason: str = ""
    """Why the labels, and so the image, can't be used; empty if they can."""

    @functools.cached_property
    def label_digest(self) -> bytes:
        """A hash of the true labels, by which records of one image are compared."""
        return hashlib.blake2b(repr(sorted(self.rows.items())).encode(), digest_size=8).digest()


class ShardPacker:
    """Pack a set's images into shards of `shard_images`, each with a label file per task.

    New shards are written to `work`, numbered from 0, where they survive an interruption; kept ones stay where they
    are. `close` moves the new ones behind the kept ones.
    """

    def __init__(self, out: Path, labels: Mapping[str, Label], shard_images: int, name: str) -> None:
        self.out, self.work = out, out / WORK
        self.labels, self.shard_images, self.name = labels, shard_images, name
        self.counts: collections.Counter[str] = collections.Counter()
        self.shards: collections.Counter[str] = collections.Counter()
        """Number of shards by split."""
        self.lists: dict[str, list[tuple[int, str, str, str]]] = {"quarantine": [], "duplicates": [], "notes": []}
        """Number, name, split and reason of records, by the name of the file that lists them."""
        self.inherited: dict[str, str] = {}
        """Files that are taken from the previous artifact as they are, for `INHERITED_FILES`."""
        self._open: dict[str, tuple[ShardWriter, list[PackedRecord]]] = {}
        self.conflicts: list[str] = []
        """For each record with another label than the image has already: its name, and why it is not used."""
        self._firsts: dict[tuple[str, str], tuple[str, bytes]] = {}
        """By split and key of an image, the name and the label's digest of the record that it is stored as."""
        self._next_numbers: dict[str, int] = {
            split: max((_number(tar.stem) + 1 for tar in finished_tars(self.work, split)), default=0)
            for split in SPLITS
        }
        self._offsets: dict[str, int] = dict.fromkeys(SPLITS, 0)
        """The number of the first new shard by split, after the kept ones."""

    def _add_to_list(self, table: str, record: PackedRecord, split: str, reason: str) -> None:
        self.lists[table].append((record.number, record.name, split, reason))

    def count_annotations(self, annotations: int, dropped: int) -> None:
        """Count annotations, and how many of them can't be used."""
        if annotations:
            self.counts["annotations"] += annotations
        if dropped:
            self.counts["dropped"] += dropped

    def quarantine(self, record: PackedRecord, split: str) -> None:
        """List a file that can't be used."""
        self.counts["quarantined"] += 1
        self._add_to_list("quarantine", record, split, record.reason)

    def duplicate(self, record: PackedRecord, split: str, first: str, label_digest: bytes) -> None:
        """List a record whose image is stored as that of the record `first`, whose labels have this digest."""
        self.counts["duplicates"] += 1
        reason = f"same bytes as {first}"
        if record.rows and record.label_digest != label_digest:
            self.counts["conflicts"] += 1
            reason += ", but another label, which is not used"
            self.conflicts.append(f"{record.name}: {reason}")
        self._add_to_list("duplicates", record, split, reason)

    def add(self, record: PackedRecord, split: str, image: NewImage) -> None:
        """Store an image that no earlier shard has, or list why it is not stored."""
        first = self._firsts.get((split, image.key))
        if first is not None:
            return self.duplicate(record, split, *first)
        if record.reason:
            return self.quarantine(record, split)
        self._firsts[split, image.key] = record.name, record.label_digest if self.labels else b""
        return self._pack(record, split, image)

    def _pack(self, record: PackedRecord, split: str, image: NewImage) -> None:
        if split not in self._open:
            name = f"shard-{self._next_numbers[split]:06d}"
            self._next_numbers[split] += 1
            self._open[split] = (ShardWriter(self.work / "images" / split, name), [])
        writer, records = self._open[split]
        writer.add(image)
        records.append(record)
        if len(records) >= self.shard_images:
            self._finish(split)

    def _finish(self, split: str) -> None:
        writer, records = self._open[split]
        writer.close()
        del self._open[split]
        self._count(split, records)
        self._write_labels(ExistingShard(split, local_shard(writer.tar_path), len(records)), records)

    def keep(self, shard: ExistingShard, records: Sequence[PackedRecord]) -> None:
        """Keep an earlier shard, as all its images are still in the source: as these records."""
        stem = f"images/{shard.split}/{shard.name}"
        index, names = shard.shard.table, [record.name for record in records]
        renamed = index.column("source").to_pylist() != names
        if renamed:
            path = self._folder(shard) / f"{stem}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            column = index.schema.get_field_index("source")
            write_table(path, index.set_column(column, index.schema.field(column), pa.array(names)))
        if shard.sealed:
            files = [f"{stem}.tar"] if renamed else [f"{stem}.tar", f"{stem}.parquet"]
            self.inherited |= dict(zip(files, files, strict=True))
            self._offsets[shard.split] = _number(shard.name) + 1
        self._count(shard.split, records)
        self._write_labels(shard, records)

    def repack(self, shard: ExistingShard, records: Sequence[PackedRecord | None]) -> None:
        """Move an earlier shard's images into new shards; None stands for an image that is no longer in the source."""
        shard.shard.download(DOWNLOAD_SHARE)
        for row, record in enumerate(records):
            if record is None:
                continue
            entry = shard.shard.row(row)
            data = shard.shard.read_original(row, self.name)
            image = NewImage(data, entry.suffix, entry.width, entry.height, record.name)
            self._pack(record, shard.split, image)
        if not shard.sealed:
            files = self.work.glob(f"**/{shard.split}/{shard.name}.*")
            for path in sorted(files, key=lambda path: path.suffix != ".tar"):  # the tar first: it makes a shard
                path.unlink()

    def _folder(self, shard: ExistingShard) -> Path:
        return self.out if shard.sealed else self.work

    def _count(self, split: str, records: Sequence[PackedRecord]) -> None:
        """Count a shard with its images and their labels, and list the notes on them."""
        self.shards[split] += 1
        for record in records:
            self.counts["images"] += 1
            self.counts[f"images.{split}"] += 1
            for task in record.rows:
                self.counts[f"labels.{task}.{split}"] += 1
            self.count_annotations(record.annotations, record.dropped)
            for note in record.notes:
                self.counts["notes"] += 1
                self._add_to_list("notes", record, split, note)

    def _write_labels(self, shard: ExistingShard, records: Sequence[PackedRecord]) -> None:
        """Write the true labels of a shard's images."""
        keys = shard.shard.columns("key").column("key").to_pylist() if self.labels else []
        for task, label in self.labels.items():
            metadata = store_metadata(label, f"{TRUTH}:{self.name}", shard.sha256)
            path = self._folder(shard) / "labels" / task / shard.split / f"{shard.name}.parquet"
            writer = LabelWriter(path, label, metadata)
            for key, record in zip(keys, records, strict=True):
                row = record.rows.get(task)
                writer.add(key, row, "ok" if row else "none", None if row else "the set has no label for it")
            writer.close()

    def close(self) -> None:
        """Finish open shards, number the new ones behind the kept ones, and write the lists."""
        for split in list(self._open):
            self._finish(split)
        for path in sorted(self.work.glob("*/**/shard-*.*")):
            number = self._offsets[path.parent.name] + _number(path.stem)
            link_or_copy(path, self.out / path.relative_to(self.work).with_name(f"shard-{number:06d}{path.suffix}"))
        for table, rows in self.lists.items():
            rows.sort(key=lambda row: row[0])
            entries = [dict(zip(LIST_SCHEMA.names, row[1:], strict=True)) for row in rows]
            write_parquet(self.out / f"{table}.parquet", pa.Table.from_pylist(entries, schema=LIST_SCHEMA))

    def discard(self) -> None:
        """Remove half-written shards; after `close` there are none."""
        for writer, _ in self._open.values():
            writer.discard()

    def summary(self) -> dict[str, Any]:
        """Return the content of `set.json`."""
        return {
            "splits": {split: self.shards[split] for split in SPLITS if self.shards[split]},
            "spaces": {task: label.space.to_json() for task, label in self.labels.items()},
            "counts": dict(self.counts),
        }


def _number(name: str) -> int:
    return int(name.removeprefix("shard-"))
