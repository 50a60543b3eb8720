"""Filling shards: images with their true labels beside them, and the lists of what did not go in as it was."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.incremental import ExistingShard, unfinished
from pipeline.errors import DataError
from pipeline.sources._splits import SPLITS
from pipeline.steps.artifact import WORK
from pipeline.storage.root import link_or_copy
from pipeline.stores.images import ImageShard, NewImage, ShardWriter, local_shard, write_table
from pipeline.stores.labels import Label, LabelWriter, Row, about_store

TRUTH = "truth"
SHARE = 1 / 4
"""Of the cache, if the root is elsewhere: shards this large are fetched whole where most of their images are read."""
LIST = pa.schema([("source", pa.string()), ("split", pa.string()), ("reason", pa.string())])


@dataclasses.dataclass(frozen=True)
class PackedRecord:
    """A record on its way into a shard: its place in the source, its name, and its true labels, encoded by task.

    `reason` says why the labels can't be used, and the image with them.
    """

    number: int
    name: str
    rows: Mapping[str, Row] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    reason: str = ""


class Lists:
    """`quarantine`, `duplicates` and `notes`: what there is to say of single records."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[int, str, str, str]]] = {"quarantine": [], "duplicates": [], "notes": []}

    def add(self, table: str, record: PackedRecord, split: str, reason: str) -> None:
        """A line about a record."""
        self._rows[table].append((record.number, record.name, split, reason))

    def write(self, folder: Path) -> None:
        """One Parquet file each, in the source's order."""
        for name, rows in self._rows.items():
            rows.sort(key=lambda row: row[0])
            lines = [dict(zip(LIST.names, row[1:], strict=True)) for row in rows]
            pq.write_table(pa.Table.from_pylist(lines, schema=LIST), folder / f"{name}.parquet")

    def first_reasons(self, most: int = 3) -> str:
        """A few of the quarantined files, for a message."""
        return "; ".join(f"{source}: {reason}" for _, source, _, reason in sorted(self._rows["quarantine"])[:most])


class ShardPacker:
    """The shards of a set in the making.

    New shards are made in `work`, numbered from 0, where they outlast an interruption; earlier ones are kept where they
    are. `close` puts the new ones behind those that were kept.
    """

    def __init__(self, out: Path, labels: Mapping[str, Label], shard_images: int, name: str) -> None:
        self.out, self.work = out, out / WORK
        self.labels, self.shard_images, self.name = labels, shard_images, name
        self.counts: collections.Counter[str] = collections.Counter()
        self.shards: collections.Counter[str] = collections.Counter()
        self.lists = Lists()
        self.adopted: dict[str, str] = {}
        """Files that stay as they are in the artifact before, as `INHERITED_FILES` wants them."""
        self._open: dict[str, tuple[ShardWriter, list[PackedRecord]]] = {}
        self._first: dict[tuple[str, str], str] = {}
        self._next: dict[str, int] = {split: _after(unfinished(self.work, split)) for split in SPLITS}
        self._behind: dict[str, int] = dict.fromkeys(SPLITS, 0)
        """The number that the first of the new shards will have."""

    def quarantine(self, record: PackedRecord, split: str) -> None:
        """List a file that can't be used."""
        self.counts["quarantined"] += 1
        self.lists.add("quarantine", record, split, record.reason)

    def duplicate(self, record: PackedRecord, split: str, first: str) -> None:
        """List a record whose image is stored under the name `first`."""
        self.counts["duplicates"] += 1
        dropped = "; its label is not used" if self.labels else ""
        self.lists.add("duplicates", record, split, f"same bytes as {first}{dropped}")

    def add(self, record: PackedRecord, split: str, image: NewImage) -> None:
        """Store an image that no earlier shard has, or list why not."""
        first = self._first.get((split, image.key))
        if first is not None:
            return self.duplicate(record, split, first)
        if record.reason:
            return self.quarantine(record, split)
        self._first[split, image.key] = record.name
        return self._pack(record, split, image)

    def _pack(self, record: PackedRecord, split: str, image: NewImage) -> None:
        writer, records = self._open.get(split) or self._start(split)
        writer.add(image)
        records.append(record)
        if len(records) >= self.shard_images:
            self._finish(split)

    def _start(self, split: str) -> tuple[ShardWriter, list[PackedRecord]]:
        name = f"shard-{self._next[split]:06d}"
        self._next[split] += 1
        self._open[split] = (ShardWriter(self.work / "images" / split, name), [])
        return self._open[split]

    def _finish(self, split: str) -> None:
        writer, records = self._open[split]
        writer.close()
        del self._open[split]
        self._describe(ExistingShard(split, local_shard(writer.tar_path), len(records)), records)

    def keep(self, shard: ExistingShard, records: Sequence[PackedRecord]) -> None:
        """Keep an earlier shard: its images are all in the source still, as these records."""
        stem = f"images/{shard.split}/{shard.name}"
        renamed = self._rename(shard, self._folder(shard) / f"{stem}.parquet", [record.name for record in records])
        if shard.sealed:
            stays = [f"{stem}.tar"] if renamed else [f"{stem}.tar", f"{stem}.parquet"]
            self.adopted |= dict(zip(stays, stays, strict=True))
            self._behind[shard.split] = _number(shard.name) + 1
        self._describe(shard, records)

    def _rename(self, shard: ExistingShard, path: Path, names: list[str]) -> bool:
        """Write the shard's index anew if its images are called otherwise than before; whether they are."""
        index = shard.shard.table
        if index.column("source").to_pylist() == names:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        place = index.schema.get_field_index("source")
        write_table(path, index.set_column(place, index.schema.field(place), pa.array(names)))
        return True

    def break_up(self, shard: ExistingShard, records: Sequence[PackedRecord | None]) -> None:
        """Put what is left of an earlier shard into new ones: None stands for an image that is gone."""
        shard.shard.download(SHARE)
        for row, record in enumerate(records):
            if record is not None:
                self._pack(record, shard.split, self._again(shard.shard, row, record.name))
        if not shard.sealed:
            found = self.work.glob(f"**/{shard.split}/{shard.name}.*")
            for path in sorted(found, key=lambda path: path.suffix != ".tar"):  # without its tar a shard is none
                path.unlink()

    def _again(self, images: ImageShard, row: int, source: str) -> NewImage:
        """An image of a shard, for another shard."""
        about = images.row(row)
        image = NewImage(images.read(row), about.suffix, about.width, about.height, source)
        if image.sha256 != about.sha256:
            raise DataError(
                f"{images.tar}: image {about.key} is damaged in it. `must run` with --force data.{self.name} reads "
                "everything from the source again."
            )
        return image

    def _folder(self, shard: ExistingShard) -> Path:
        return self.out if shard.sealed else self.work

    def _describe(self, shard: ExistingShard, records: Sequence[PackedRecord]) -> None:
        """Count what a shard holds and write its true labels."""
        self.shards[shard.split] += 1
        for record in records:
            self._count(record, shard.split)
        for task, label in self.labels.items():
            about = about_store(label, f"{TRUTH}:{self.name}", shard.sha256)
            path = self._folder(shard) / "labels" / task / shard.split / f"{shard.name}.parquet"
            truth = LabelWriter(path, label, about)
            keys = shard.shard.columns("key").column("key").to_pylist()
            for key, record in zip(keys, records, strict=True):
                row = record.rows.get(task)
                truth.add(key, row, "ok" if row else "none", None if row else "the set has no label for it")
            truth.close()

    def _count(self, record: PackedRecord, split: str) -> None:
        self.counts["images"] += 1
        self.counts[f"images.{split}"] += 1
        for task in record.rows:
            self.counts[f"labels.{task}.{split}"] += 1
        for note in record.notes:
            self.counts["notes"] += 1
            self.lists.add("notes", record, split, note)

    def close(self) -> None:
        """Finish the open shards, put the new ones in their places and write the lists."""
        for split in list(self._open):
            self._finish(split)
        for path in sorted(self.work.glob("*/**/shard-*.*")):
            number = self._behind[path.parent.name] + _number(path.stem)
            link_or_copy(path, self.out / path.relative_to(self.work).with_name(f"shard-{number:06d}{path.suffix}"))
        self.lists.write(self.out)

    def discard(self) -> None:
        """Leave no half-written shard; after `close` there is nothing to do."""
        for writer, _ in self._open.values():
            writer.discard()

    def summary(self) -> dict[str, Any]:
        """What `set.json` says."""
        return {
            "splits": {split: self.shards[split] for split in SPLITS if self.shards[split]},
            "spaces": {task: label.space.to_json() for task, label in self.labels.items()},
            "counts": dict(self.counts),
        }


def _number(name: str) -> int:
    return int(name.removeprefix("shard-"))


def _after(paths: Sequence[Path]) -> int:
    """The number that follows that of the last of these shards."""
    return _number(paths[-1].stem) + 1 if paths else 0
