"""The step that reads a set: a source's images become an image store, its true labels label stores beside it.

images/<split>/shard-000000.tar  .parquet        labels/<task>/<split>/shard-000000.parquet
quarantine.parquet   files that can't be used, with the reason        duplicates.parquet   images met again
notes.parquet        labels that had to be clipped or dropped         set.json   splits, label spaces, counts
log/sources.parquet  every file's time stamp and what it was found to be, for the next reading
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tasks
from ingest.incremental import ExistingShard, KnownFile, PreviousShards, Size, SourceIndex, SourceMatch, same_place
from ingest.shard_packer import PackedRecord, ShardPacker
from pipeline.data.decode import inspect
from pipeline.data.prefetch import prefetch
from pipeline.errors import DataError
from pipeline.recipe.source import SourceConfig
from pipeline.sources import BaseSource, SourceRecord, Stamp
from pipeline.steps.artifact import INHERITED_FILES, Inputs, write_json
from pipeline.stores.images import NewImage

INCREMENTAL_KEYS = ("files", "source.path", "source.max_bad")
"""Settings that don't change what is an image of the set and in which split."""
IN_FLIGHT = 64
"""Images being read at once: what ingesting holds in memory, beside one shard's label rows."""
EVERY = 50
"""Records between updates of the progress."""


def open_source(config: Mapping[str, Any]) -> BaseSource:
    """The source that a recipe's `data` entry describes."""
    module = importlib.import_module(f"pipeline.sources.{config['kind']}")
    settings: SourceConfig = module.Config.model_validate(config)
    source: BaseSource = module.Source(settings)
    return source


def ingest(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Read the set `config["source"]` into stores of `config["shard_images"]` images a shard.

    A set that was read before grows: image shards whose images are all still there, each in its split, stay as they
    are; new images, and what is left of the other shards, fill shards behind them. So what is in which shard depends on
    what was there before, and only a set read without an artifact before it is packed in the source's order alone.
    That is the price for labels that stay: they belong to shards, and one new file near the beginning of a set would
    otherwise be reason to label all of it again.

    Files known by name and stamp are not read again, true labels always are.

    Raises DataError if more than the source's `max_bad` share of its files can't be used, or none can.
    """
    reading = _Reading(config, inputs, out)
    packing = reading.packing
    try:
        reading.look_at_all()
        reading.settle()
        for name, reason in reading.source.problems():
            packing.quarantine(PackedRecord(reading.looked, name, reason=reason), "")
        packing.close()
    finally:
        packing.discard()
    _check_share(packing, config["source"].get("max_bad", 0.05), config["name"])
    reading.seen.write(out)
    write_json(out / "set.json", packing.summary())
    return {**packing.counts, "read_now": reading.read_now, INHERITED_FILES: packing.adopted}


@dataclasses.dataclass
class _Look:
    """A record, looked at: the key of its image, or the reason why it is none."""

    number: int
    record: SourceRecord
    stamp: Stamp | None = None
    key: str | None = None
    reason: str = ""
    read: bool = False
    image: NewImage | None = None
    """The image itself, if no earlier shard has it; and with it its labels."""
    entry: PackedRecord | None = None

    @property
    def claim(self) -> SourceMatch:
        return SourceMatch(self.number, self.record.name, self.record.truth)


@dataclasses.dataclass(frozen=True)
class _Settled:
    """What became of an image of an earlier shard: the record that it is kept as, if there is any."""

    record: PackedRecord | None
    bad: Sequence[PackedRecord]
    again: Sequence[PackedRecord]


class _Reading:
    """One reading of a set, from what earlier ones left to the last shard."""

    def __init__(self, config: Mapping[str, Any], inputs: Inputs, out: Path) -> None:
        before = inputs.previous
        known = before if before and same_place(before, config) else None
        self.source = open_source(config["source"])
        self.labels = {task: tasks.label(space) for task, space in self.source.spaces().items()}
        self.earlier = PreviousShards(out, before, config["name"])
        self.seen = SourceIndex(out, known, config["shard_images"])
        self.packing = ShardPacker(out, self.labels, config["shard_images"], config["name"])
        self.looked = self.read_now = 0
        self._step, self._runtime, self._done = f"data.{config['name']}", inputs.runtime, 0
        self._total = self.source.count() or 0

    def look_at_all(self) -> None:
        """Look at every record: new images go into new shards at once, others claim their place in earlier ones."""
        looks = prefetch(self._look, enumerate(self.source.records()), self._runtime.threads, IN_FLIGHT)
        with contextlib.closing(looks):
            for look in looks:
                self._runtime.check_stop(self._step)
                self._take(look)

    def _look(self, numbered: tuple[int, SourceRecord]) -> _Look:
        """On a thread: read what is not known, and the true labels of what is new."""
        look = _Look(*numbered)
        try:
            look.stamp = look.record.stamp()
            if not self._knows(look):
                self._read(look, look.record.read())
        except (DataError, OSError) as error:
            look.reason, look.stamp = _said(error), None  # it may be there tomorrow: this is not remembered
        return look

    def _knows(self, look: _Look) -> bool:
        """Whether there is no need to read: the file is as it was, and either no image or one that is in a shard."""
        known = self.seen.find(look.record.name, look.stamp)
        if known is None or (known.key and not self.earlier.has(look.record.split, known.key)):
            return False
        look.key, look.reason = known.key, known.reason or ""
        return True

    def _read(self, look: _Look, data: bytes) -> None:
        look.read, record = True, look.record
        try:
            found = inspect(data)
        except (DataError, OSError) as error:
            look.reason = _said(error)
            return
        image = NewImage(data, found.suffix, found.width, found.height, record.name)
        look.key = image.key
        if not self.earlier.has(record.split, image.key):
            look.image, look.entry = image, self._entry(look.claim, (found.width, found.height))

    def _entry(self, claim: SourceMatch, size: Size) -> PackedRecord:
        """A record with its true labels, read and encoded."""
        try:
            truth = claim.truth(size)
            rows = {task: self.labels[task].encode(value) for task, value in truth.values.items()}
        except (DataError, OSError) as error:
            return PackedRecord(claim.number, claim.name, reason=_said(error))
        return PackedRecord(claim.number, claim.name, rows, truth.notes)

    def _take(self, look: _Look) -> None:
        name, split = look.record.name, look.record.split
        self.looked += 1
        self.read_now += look.read
        if look.stamp and look.read:
            self.seen.note(name, look.stamp, KnownFile(look.key, look.reason or None))
        elif look.stamp:
            self.seen.keep(name)
        if look.key is None:
            self.packing.quarantine(PackedRecord(look.number, name, reason=look.reason), split)
        elif look.entry and look.image:
            self.packing.add(look.entry, split, look.image)
        else:
            self.earlier.claim(split, look.key, look.claim)
            if self.labels:
                return  # there is more to do for it
        self._progress(1)

    def settle(self) -> None:
        """Keep or break up every earlier shard, with the true labels of its images read anew."""
        shards = self.earlier.shards
        images = (image for shard in shards for image in self.earlier.take(shard))
        at_once = (self._settle(image) for image in images)  # without labels there is nothing to wait for
        ahead_of_us = prefetch(self._settle, images, self._runtime.threads, IN_FLIGHT)
        with contextlib.closing(ahead_of_us if self.labels else at_once) as settled:
            for shard in shards:
                self._runtime.check_stop(self._step)
                self._decide(shard, list(itertools.islice(settled, shard.images)))

    def _settle(self, image: tuple[Sequence[SourceMatch], Size]) -> _Settled:
        """On a thread: the first record that claims an image and whose labels can be used has it."""
        claims, size = image
        bad: list[PackedRecord] = []
        for place, claim in enumerate(claims):
            entry = self._entry(claim, size)
            if not entry.reason:
                return _Settled(entry, bad, [PackedRecord(other.number, other.name) for other in claims[place + 1 :]])
            bad.append(entry)
        return _Settled(None, bad, [])

    def _decide(self, shard: ExistingShard, settled: Sequence[_Settled]) -> None:
        for image in settled:
            for entry in image.bad:
                self.packing.quarantine(entry, shard.split)
            for entry in image.again:
                self.packing.duplicate(entry, shard.split, image.record.name if image.record else "")
        records = [image.record for image in settled]
        whole = [record for record in records if record]
        if len(whole) == len(records):
            self.packing.keep(shard, whole)
        else:
            self.packing.break_up(shard, records)
        if self.labels:
            self._progress(sum(len(image.bad) + len(image.again) for image in settled) + len(whole))

    def _progress(self, records: int) -> None:
        """So many more records are done with."""
        before, self._done = self._done, self._done + records
        if before // EVERY < self._done // EVERY:
            total = max(self._total, self._done)
            line = f"{self._done}/{total} images, {self.read_now} read" if self._total else f"{self._done} images"
            self._runtime.progress(self._step, self._done / total if self._total else 0.0, line)


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _check_share(packing: ShardPacker, most: float, name: str) -> None:
    bad, good = packing.counts["quarantined"], packing.counts["images"] + packing.counts["duplicates"]
    reasons = packing.lists.first_reasons()
    if not good:
        raise DataError(f"data.{name}: not one usable image. {reasons or 'Nothing was found there.'}")
    if bad / (bad + good) > most:
        raise DataError(
            f"data.{name}: {bad} of {bad + good} files can't be used, more than max_bad = {most:g} allows. "
            f"First: {reasons}"
        )
