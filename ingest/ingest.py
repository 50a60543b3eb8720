"""The step that reads a set: its images into an image store, its true labels into label stores beside it.

images/<split>/shard-000000.tar  .parquet        labels/<task>/<split>/shard-000000.parquet
quarantine.parquet   files that can't be used, with the reason        duplicates.parquet   images met again
notes.parquet        labels that had to be clipped or dropped         set.json   splits, label spaces, counts
log/sources.parquet  time stamp and content of every file, for the next ingest (`incremental.py`)
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tasks
from ingest.dataset import IngestedSet
from ingest.incremental import ExistingShard, KnownFile, PreviousShards, Size, SourceIndex, SourceMatch
from ingest.shard_packer import PackedRecord, ShardPacker
from pipeline.data.bands import inspect_pixels
from pipeline.data.prefetch import prefetch
from pipeline.errors import ConfigError, DataError, error_context, mask_credentials
from pipeline.sources import BaseSource, SourceRecord, Stamp
from pipeline.steps.artifact import INHERITED_FILES, Artifact, Inputs, write_json
from pipeline.steps.config_hash import masked
from pipeline.storage.path import URL
from pipeline.stores.images import NewImage
from pipeline.stores.labels import Label

INCREMENTAL_KEYS = ("files", "source.path", "source.max_bad")
"""Settings that decide neither which images are in the set nor in which split."""
IN_FLIGHT = 64
"""Images read at once: with one shard's label rows, what ingesting holds in memory."""
MOST_NOTES = 3
"""Kinds of notes on labels that are told with their numbers."""
PROGRESS_EVERY = 50
"""Records between reports of progress."""


def open_source(config: Mapping[str, Any]) -> BaseSource:
    """Open the source that an entry of a recipe's `data` describes."""
    module = importlib.import_module(f"pipeline.sources.{config['kind']}")
    read = module.Config.model_validate(config)
    source: BaseSource = module.Source(read)
    source.channels = read.channels
    return source


def ingest(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Read the set `config["source"]` into stores with `config["shard_images"]` images a shard.

    A set that was ingested before grows. Shards whose images are all still in the source, in the same split, stay as
    they are; new images, and what is left of other shards, go into shards behind them. The shard of an image therefore
    depends on the set's history. In return labels stay valid: they belong to shards, and with every set packed in the
    source's order, one new file near its beginning would force all of it to be labelled again.

    Files with the name and stamp of the previous ingest are not read again; true labels always are.

    Raises DataError if more than the source's `max_bad` share of its files can't be used, or none can.
    """
    run = _Ingest(config, inputs, out)
    packer = run.packer
    try:
        run.scan_source()
        run.update_previous_shards()
        for name, reason in run.source.problems:
            packer.quarantine(PackedRecord(run.scanned, name, reason=reason), "")
        strays = run.source.stray_annotations
        packer.count_annotations(strays, dropped=strays)
        packer.close()
    finally:
        packer.discard()
    _check_bad_share(packer, config["source"].get("max_bad", 0.05), config["name"])
    run.index.write(out)
    write_json(out / "set.json", packer.summary())
    skipped = {"skipped": dict(run.source.skipped)} if run.source.skipped else {}
    notes = dict(_frequent_notes(packer))
    frequent = {"frequent_notes": notes} if notes else {}
    lost = _lost_classes(inputs.previous, run.labels)
    warnings = {"warnings": lost} if lost else {}
    return {
        **packer.counts,
        "read_now": run.read_now,
        **skipped,
        **frequent,
        **warnings,
        INHERITED_FILES: packer.inherited,
    }


def _lost_classes(previous: Artifact | None, labels: Mapping[str, Label]) -> list[str]:
    """Return a sentence for each task whose classes at the previous ingest are no longer all there."""
    sentences = []
    for task, before in (IngestedSet(previous).spaces if previous else {}).items():
        now = labels[task].space.classes if task in labels else ()
        lost = [name for name in before.classes if name not in now]
        if lost or task not in labels:
            named = f"the {task} classes {', '.join(lost)}" if lost else f"labels for {task}"
            sentences.append(f"no longer has {named}, which it had when it was read last")
    return sentences


@dataclasses.dataclass
class _ScannedRecord:
    """A record with the key of its image, or the reason why it has none."""

    number: int
    record: SourceRecord
    stamp: Stamp | None = None
    key: str | None = None
    reason: str = ""
    read: bool = False
    """True if the file had to be read."""
    image: NewImage | None = None
    """The image itself, if no earlier shard has it."""
    packed: PackedRecord | None = None
    """With `image`: the record with its true labels."""

    @property
    def match(self) -> SourceMatch:
        return SourceMatch(self.number, self.record.name, self.record.truth)


@dataclasses.dataclass(frozen=True)
class _MatchedImage:
    """An image of an earlier shard, with the record that it is kept as, None if there is none."""

    record: PackedRecord | None
    bad: Sequence[PackedRecord]
    duplicates: Sequence[PackedRecord]


def _whole(path: Any) -> Any:
    """Return a local path as an absolute one, so that it does not matter how it is written."""
    return os.path.abspath(os.path.expanduser(path)) if isinstance(path, str) and not URL.match(path) else path


class _Ingest:
    """One ingest of a set."""

    def __init__(self, config: Mapping[str, Any], inputs: Inputs, out: Path) -> None:
        previous = inputs.previous
        source_path = config["source"].get("path")
        # of another path, names mean other files
        same = previous and _whole(previous.manifest["config"]["source"].get("path")) == _whole(masked(source_path))
        indexed = previous if same else None
        self.source = open_source(config["source"])
        self.labels = {task: tasks.label(space) for task, space in self.source.spaces().items()}
        self.previous = PreviousShards(out, previous, config["name"])
        self.index = SourceIndex(out, indexed, config["shard_images"])
        self.packer = ShardPacker(out, self.labels, config["shard_images"], config["name"])
        self.scanned = self.read_now = 0
        self._step, self._runtime, self._done = f"data.{config['name']}", inputs.runtime, 0
        self._total = self.source.count() or 0

    def scan_source(self) -> None:
        """Scan every record: pack new images into new shards, and match the others with earlier shards."""
        records = prefetch(self._scan, enumerate(self._records()), self._runtime.threads, IN_FLIGHT)
        with contextlib.closing(records):
            for record in records:
                self._runtime.check_stop(self._step)
                self._route(record)

    def _records(self) -> Iterator[SourceRecord]:
        """Yield the source's records. Its errors begin with the step's name."""
        with error_context(self._step):
            yield from self.source.records()

    def _scan(self, numbered: tuple[int, SourceRecord]) -> _ScannedRecord:
        """Read the file unless it is known, and the true labels of a new image. Runs on a thread."""
        scanned = _ScannedRecord(*numbered)
        try:
            scanned.stamp = scanned.record.stamp()
            if not self._is_known(scanned):
                self._read(scanned, scanned.record.read())
        except (DataError, OSError) as error:
            scanned.reason, scanned.stamp = _error_text(error), None  # without a stamp, the next ingest tries again
        except ConfigError as error:  # a package is missing: it would be indexed as the file's own fault
            raise ConfigError(f"{scanned.record.name}: {error}") from error
        return scanned

    def _is_known(self, scanned: _ScannedRecord) -> bool:
        """Fill in key or reason of an unchanged file; return False if it is not known, or its image in no shard."""
        known = self.index.find(scanned.record.name, scanned.stamp)
        if known is None or (known.key and not self.previous.has(scanned.record.split, known.key)):
            return False
        scanned.key, scanned.reason = known.key, known.reason or ""
        return True

    def _read(self, scanned: _ScannedRecord, data: bytes) -> None:
        scanned.read, record = True, scanned.record
        try:
            facts = inspect_pixels(data, self.source.channels)
        except (DataError, OSError) as error:
            scanned.reason = _error_text(error)
            return
        image = NewImage(data, facts.suffix, facts.width, facts.height, record.name)
        scanned.key = image.key
        if not self.previous.has(record.split, image.key):
            scanned.image, scanned.packed = image, self._encode(scanned.match, (facts.width, facts.height))

    def _encode(self, match: SourceMatch, size: Size) -> PackedRecord:
        """Read and encode the true labels of a record."""
        try:
            truth = match.truth(size)
            rows = {task: self.labels[task].encode(value) for task, value in truth.values.items()}
        except (DataError, OSError) as error:
            return PackedRecord(match.number, match.name, reason=_error_text(error))
        found = truth.annotations, truth.dropped
        return PackedRecord(match.number, match.name, rows, truth.notes, *found)

    def _route(self, scanned: _ScannedRecord) -> None:
        """Index the file; quarantine it, pack its image, or match it with an earlier shard."""
        name, split = scanned.record.name, scanned.record.split
        self.scanned += 1
        self.read_now += scanned.read
        if scanned.stamp and scanned.read:
            self.index.add(name, scanned.stamp, KnownFile(scanned.key, scanned.reason or None))
        elif scanned.stamp:
            self.index.mark_unchanged(name)
        if scanned.key is None:
            self.packer.quarantine(PackedRecord(scanned.number, name, reason=scanned.reason), split)
        elif scanned.packed and scanned.image:
            self.packer.add(scanned.packed, split, scanned.image)
        else:
            self.previous.add_match(split, scanned.key, scanned.match)
            if self.labels:
                return  # done when its labels are read
        self._report_progress(1)

    def update_previous_shards(self) -> None:
        """Keep or repack every earlier shard, and read the true labels of its images again."""
        shards = self.previous.shards
        images = (image for shard in shards for image in self.previous.pop_matches(shard))
        if self.labels:
            matched = prefetch(self._match, images, self._runtime.threads, IN_FLIGHT)
        else:
            matched = (self._match(image) for image in images)  # nothing to read, so no threads
        with contextlib.closing(matched):
            for shard in shards:
                self._runtime.check_stop(self._step)
                self._keep_or_repack(shard, list(itertools.islice(matched, shard.images)))

    def _match(self, image: tuple[Sequence[SourceMatch], Size]) -> _MatchedImage:
        """Give an image to the first of its records whose labels can be used. Runs on a thread."""
        matches, size = image
        bad: list[PackedRecord] = []
        for position, match in enumerate(matches):
            packed = self._encode(match, size)
            if not packed.reason:
                return _MatchedImage(packed, bad, [self._encode(other, size) for other in matches[position + 1 :]])
            bad.append(packed)
        return _MatchedImage(None, bad, [])

    def _keep_or_repack(self, shard: ExistingShard, images: Sequence[_MatchedImage]) -> None:
        for image in images:
            for record in image.bad:
                self.packer.quarantine(record, shard.split)
            for record in image.duplicates:
                assert image.record
                self.packer.duplicate(record, shard.split, image.record.name, image.record.label_digest)
        records = [image.record for image in images]
        present = [record for record in records if record]
        if len(present) == len(records):
            self.packer.keep(shard, present)
        else:
            self.packer.repack(shard, records)
        if self.labels:
            self._report_progress(sum(len(image.bad) + len(image.duplicates) for image in images) + len(present))

    def _report_progress(self, records: int) -> None:
        """Count records as done, and report every PROGRESS_EVERY."""
        before, self._done = self._done, self._done + records
        if before // PROGRESS_EVERY < self._done // PROGRESS_EVERY:
            total = max(self._total, self._done)
            line = f"{self._done}/{total} images, {self.read_now} read" if self._total else f"{self._done} images"
            self._runtime.progress(self._step, self._done / total if self._total else 0.0, line)


def _error_text(error: Exception) -> str:
    return mask_credentials(str(error)) or type(error).__name__


def _check_bad_share(packer: ShardPacker, max_bad: float, name: str) -> None:
    """Raise DataError if no image can be used, or more than a share `max_bad` of the files or annotations can't."""
    conflicts = packer.counts["conflicts"]
    bad = packer.counts["quarantined"] + conflicts
    good = packer.counts["images"] + packer.counts["duplicates"] - conflicts
    unusable = [f"{source}: {reason}" for _, source, _, reason in sorted(packer.lists["quarantine"])]
    reasons = "; ".join([*unusable, *packer.conflicts][:3])
    if not good:
        raise DataError(f"data.{name}: not one usable image. {reasons or 'Nothing was found there.'}")
    if bad / (bad + good) > max_bad:
        raise DataError(
            f"data.{name}: {bad} of {bad + good} files can't be used, more than max_bad = {max_bad:g} allows. "
            f"First: {reasons}"
        )
    dropped, annotations = packer.counts["dropped"], packer.counts["annotations"]
    if annotations and dropped / annotations > max_bad:
        notes = ", ".join(f"{note} ({count})" for note, count in _frequent_notes(packer))
        raise DataError(
            f"data.{name}: {dropped} of {annotations} annotations can't be used, more than max_bad = {max_bad:g} "
            f"allows. Most frequent: {notes}"
        )


def _frequent_notes(packer: ShardPacker) -> list[tuple[str, int]]:
    """Return the most frequent notes on labels, without the place, and how often they were made."""
    return collections.Counter(note.partition(":")[0] for *_, note in packer.lists["notes"]).most_common(MOST_NOTES)
