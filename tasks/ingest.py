"""The step that reads a set: a source's images become an image store, its true labels label stores beside it.

images/<split>/shard-000000.tar  .parquet        labels/<task>/<split>/shard-000000.parquet
quarantine.parquet   files that can't be used, with the reason        duplicates.parquet   images met again
notes.parquet        labels that had to be clipped or dropped         set.json   splits, label spaces, counts
"""

from __future__ import annotations

import collections
import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import tasks
from pipeline.artifacts import Artifact, Inputs, hash_file, read_json, write_json
from pipeline.decode import inspect
from pipeline.errors import ConfigError, DataError
from pipeline.images import ImageShard, ImageStore, NewImage, ShardWriter
from pipeline.labels import Label, LabelSpace, LabelWriter, Row, about_store
from pipeline.roots import StoredFile, in_parallel
from pipeline.sources import SPLITS, BaseSource, Record, SourceConfig

TRUTH = "truth"
IN_FLIGHT = 64
"""Images being read at once: what ingesting holds in memory, beside one shard's label rows."""


def open_source(config: Mapping[str, Any]) -> BaseSource:
    """The source that a recipe's `data` entry describes."""
    module = importlib.import_module(f"pipeline.sources.{config['kind']}")
    settings: SourceConfig = module.Config.model_validate(config)
    source: BaseSource = module.Source(settings)
    return source


@dataclasses.dataclass
class _Read:
    """A record, read: an image with its encoded labels, or the reason why it can't be used."""

    record: Record
    image: NewImage | None = None
    rows: dict[str, Row] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    reason: str = ""


def ingest(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Read the set `config["source"]` into stores of `config["shard_images"]` images a shard.

    Raises DataError if more than the source's `max_bad` share of its files can't be used, or none can.
    """
    source = open_source(config["source"])
    labels = {task: tasks.label(space) for task, space in source.spaces().items()}
    writing = _Writing(out, labels, config["shard_images"], config["name"])
    try:
        for read in _read_all(source, labels, inputs):
            writing.add(read)
            inputs.runtime.check_stop(f"data.{config['name']}")
            seen = writing.counts["images"]
            if seen % 50 == 0:
                inputs.runtime.progress(f"data.{config['name']}", 0.0, f"{seen} images")
        for name, reason in source.problems():
            writing.quarantine(name, "", reason)
        writing.close()
    finally:
        writing.discard()
    _check_share(writing, config["source"].get("max_bad", 0.05), config["name"])
    write_json(out / "set.json", writing.summary({task: label.space for task, label in labels.items()}))
    return dict(writing.counts)


def _read_all(source: BaseSource, labels: Mapping[str, Label], inputs: Inputs) -> Iterator[_Read]:
    """All records, read on threads, in order."""
    with ThreadPoolExecutor(inputs.runtime.threads, thread_name_prefix="ingest") as pool:
        waiting: collections.deque[Any] = collections.deque()
        for record in source.records():
            waiting.append(pool.submit(_read, record, labels))
            if len(waiting) >= IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(record: Record, labels: Mapping[str, Label]) -> _Read:
    try:
        data = record.read()
        found = inspect(data)
        truth = record.truth((found.width, found.height))
        rows = {task: labels[task].encode(value) for task, value in truth.values.items()}
    except (DataError, OSError) as error:
        return _Read(record, reason=str(error))
    image = NewImage(data, found.suffix, found.width, found.height, record.name)
    return _Read(record, image, rows, truth.notes)


class _Writing:
    """The open shard of every split, and the lists of what did not go into one."""

    def __init__(self, out: Path, labels: Mapping[str, Label], shard_images: int, name: str) -> None:
        self.out, self.labels, self.shard_images, self.name = out, labels, shard_images, name
        self.counts: collections.Counter[str] = collections.Counter()
        self._open: dict[str, tuple[ShardWriter, list[dict[str, Row]]]] = {}
        self._shards: collections.Counter[str] = collections.Counter()
        self._seen: dict[tuple[str, str], str] = {}
        self._lists: dict[str, list[dict[str, str]]] = {"quarantine": [], "duplicates": [], "notes": []}

    def add(self, read: _Read) -> None:
        """Store an image, or list why not."""
        split, image = read.record.split, read.image
        if image is None:
            return self.quarantine(read.record.name, split, read.reason)
        first = self._seen.setdefault((split, image.key), read.record.name)
        if first != read.record.name:
            self.counts["duplicates"] += 1
            dropped = "; its label is not used" if read.rows else ""
            self._list("duplicates", read.record.name, split, f"same bytes as {first}{dropped}")
            return None
        for note in read.notes:
            self.counts["notes"] += 1
            self._list("notes", read.record.name, split, note)
        writer, rows = self._open.get(split) or self._start(split)
        writer.add(image)
        rows.append(read.rows)
        self.counts["images"] += 1
        self.counts[f"images.{split}"] += 1
        for task in read.rows:
            self.counts[f"labels.{task}.{split}"] += 1
        if len(rows) >= self.shard_images:
            self._finish(split)
        return None

    def quarantine(self, name: str, split: str, reason: str) -> None:
        """List a file that can't be used."""
        self.counts["quarantined"] += 1
        self._list("quarantine", name, split, reason)

    def _list(self, table: str, source: str, split: str, reason: str) -> None:
        self._lists[table].append({"source": source, "split": split, "reason": reason})

    def _start(self, split: str) -> tuple[ShardWriter, list[dict[str, Row]]]:
        name = f"shard-{self._shards[split]:06d}"
        self._shards[split] += 1
        self._open[split] = (ShardWriter(self.out / "images" / split, name), [])
        return self._open[split]

    def _finish(self, split: str) -> None:
        writer, rows = self._open.pop(split)
        writer.close()
        shard = hash_file(writer.tar_path)
        for task, label in self.labels.items():
            about = about_store(label, f"{TRUTH}:{self.name}", shard)
            truth = LabelWriter(self.out / "labels" / task / split / f"{writer.tar_path.stem}.parquet", label, about)
            for image, found in zip(writer.rows, rows, strict=True):
                row = found.get(task)
                truth.add(image.key, row, "ok" if row else "none", None if row else "the set has no label for it")
            truth.close()

    def close(self) -> None:
        """Finish the open shards and write the lists."""
        for split in list(self._open):
            self._finish(split)
        schema = pa.schema([("source", pa.string()), ("split", pa.string()), ("reason", pa.string())])
        for name, rows in self._lists.items():
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), self.out / f"{name}.parquet")

    def discard(self) -> None:
        """Leave no half-written shard; after `close` there is nothing to do."""
        for writer, _ in self._open.values():
            writer.discard()

    def first_reasons(self, most: int = 3) -> str:
        """A few of the quarantined files, for a message."""
        return "; ".join(f"{row['source']}: {row['reason']}" for row in self._lists["quarantine"][:most])

    def summary(self, spaces: Mapping[str, LabelSpace]) -> dict[str, Any]:
        return {
            "splits": {split: self._shards[split] for split in SPLITS if self._shards[split]},
            "spaces": {task: space.to_json() for task, space in spaces.items()},
            "counts": dict(self.counts),
        }


def _check_share(writing: _Writing, most: float, name: str) -> None:
    bad, good = writing.counts["quarantined"], writing.counts["images"] + writing.counts["duplicates"]
    if not good:
        raise DataError(f"data.{name}: not one usable image. {writing.first_reasons() or 'Nothing was found there.'}")
    if bad / (bad + good) > most:
        raise DataError(
            f"data.{name}: {bad} of {bad + good} files can't be used, more than max_bad = {most:g} allows. "
            f"First: {writing.first_reasons()}"
        )


def taught_space(teacher: str, task: str, data: str, spaces: Mapping[str, LabelSpace]) -> LabelSpace:
    """What a teacher's task means in the set `data`, of these label spaces. ConfigError if it has no such labels."""
    if task not in spaces:
        raise ConfigError(
            f"teachers.{teacher}: the set {data!r} has no labels for {task!r}; it has them for "
            f"{', '.join(sorted(spaces)) or 'nothing'}."
        )
    return spaces[task]


class IngestedSet:
    """A set on disk: its splits, label spaces, image stores and true labels."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        about = artifact.load("set.json", read_json)
        self.splits: dict[str, int] = about["splits"]
        self.counts: dict[str, int] = about["counts"]
        self.spaces = {task: LabelSpace.from_json(space) for task, space in about["spaces"].items()}

    def images(self, split: str) -> ImageStore:
        """The image store of a split; empty if the set has none."""
        names = [f"images/{split}/shard-{number:06d}" for number in range(self.splits.get(split, 0))]
        return ImageStore(in_parallel(self._shard, names))

    def _shard(self, name: str) -> ImageShard:
        return ImageShard(self.artifact.file(f"{name}.tar"), self.artifact.file(f"{name}.parquet"))

    def truth(self, task: str, split: str, shard: str) -> StoredFile:
        """The true labels of one image shard."""
        return self.artifact.file(f"labels/{task}/{split}/{shard}.parquet")

    def held_out(self, preferred: str, task: str | None = None) -> str | None:
        """The split to evaluate on: `preferred`, or the other held-out one, or None; with `task`, one that has its
        labels.
        """
        other = {"test": "val", "val": "test"}[preferred]
        what = "images" if task is None else f"labels.{task}"
        return next((split for split in (preferred, other) if self.counts.get(f"{what}.{split}")), None)
