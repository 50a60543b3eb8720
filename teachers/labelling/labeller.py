"""The step that labels the pool's image shards: each is decoded once for all teachers that have not labelled it.

The trained student can label the pool too, with all its heads at once, to be compared with its teachers. A label shard
is addressed by its maker and the image shard's content, `labels/<maker>-<digest>/<sha>.parquet`, and appears whole or
not at all. A rerun labels only what is missing: new shards, or all shards by a new teacher.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tasks
from ingest.pool import pool_shards
from pipeline.errors import DataError
from pipeline.steps.artifact import EXTERNAL_FILES, Artifact, Inputs, read_json, write_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import waiting
from pipeline.storage.lock import LOCKS, hold_lock
from pipeline.storage.root import in_parallel
from pipeline.stores.images import ImageShard
from pipeline.stores.label_writer import LabelWriter, store_metadata
from pipeline.stores.labels import APPLICABILITY, Label, LabelSpace
from pipeline.stores.naming import LABEL_INDEX, LABEL_STEP, store_name, student_labels, student_maker
from tasks.applicability import Applicability
from tasks.prediction import Predictor, load_network
from tasks.teacher import Teacher, load_teacher
from teachers.labelling.gate import check_gate
from teachers.labelling.inference import ShardInference, ShardRows, label_batches
from teachers.labelling.label_folder import LabelFolder, ShardFacts

SETS = "labels"
"""Key of the step's configuration: the sets of the pool that a teacher labels, by teacher that does not label all."""
STUDENT = "student"
"""The kind of step whose network has a head for every teacher."""


@dataclasses.dataclass
class LabelMaker:
    """A maker of labels: a teacher, with one head of its own name, or the student, with a head for each teacher."""

    name: str
    artifact: Artifact
    runtime: Runtime
    facts: dict[str, ShardFacts]
    """Facts of label shards that need not be read from them, by their paths in the root."""
    sets: Collection[str] | None = None
    """The sets of the pool that it labels; None for all."""

    @property
    def is_student(self) -> bool:
        """True for the student, whose labels go by other names than its teachers'."""
        return self.artifact.kind == STUDENT

    @property
    def step(self) -> str:
        """The step in which it labels the pool."""
        return student_labels(self.artifact.manifest["step"]) if self.is_student else LABEL_STEP

    @functools.cached_property
    def labels(self) -> dict[str, Label]:
        """The labels' form on disk by head."""
        if not self.is_student:
            return {self.name: Teacher.load(self.artifact).label}
        heads = self.artifact.load("model.json", read_json)["heads"]
        return {head: tasks.label(LabelSpace.from_json(space)) for head, space in heads.items()}

    def labels_set(self, name: str) -> bool:
        """Return True if it labels the images of this set."""
        return self.sets is None or name in self.sets

    @functools.cached_property
    def applicability(self) -> Applicability | None:
        """The measure of how far an image is of the teacher's kind; None if that is not known."""
        return None if self.is_student else Applicability.load(self.artifact)

    def label_name(self, head: str) -> str:
        """Return the name of a head's labels: in the index, and in the folder's name."""
        return student_maker(head) if self.is_student else head

    @functools.cached_property
    def folders(self) -> dict[str, LabelFolder]:
        """The folders of the label shards by head."""
        names = {head: store_name(self.label_name(head), self.artifact.digest) for head in self.labels}
        return {head: LabelFolder(self.runtime.root, f"labels/{name}", self.facts) for head, name in names.items()}

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The model, set up for this machine; loaded when first needed."""
        return (load_network if self.is_student else load_teacher)(self.artifact, self.runtime)

    def has(self, shard: ImageShard) -> bool:
        """Return True if an image shard is labelled by all heads."""
        return all(folder.has(shard) for folder in self.folders.values())

    def facts_of(self, shard: ImageShard) -> dict[str, ShardFacts]:
        """Return the facts of an image shard's labels, by their paths in the root."""
        return {folder.path_of(shard): folder.facts_of(shard) for folder in self.folders.values()}

    def writers(self, shard: ImageShard) -> Iterator[tuple[str, LabelWriter]]:
        """Yield each head with a writer of its label shard."""
        for head, folder in self.folders.items():
            metadata = store_metadata(self.labels[head], self.artifact.digest, shard.sha256)
            path = folder.root.local_path(folder.path_of(shard))
            yield head, LabelWriter(path, self.labels[head], metadata, (APPLICABILITY,))


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """An image shard of a set, and the label makers that have not labelled it."""

    set_name: str
    shard: ImageShard
    makers: list[LabelMaker]

    def inference(self) -> ShardInference:
        """Return the inference of the makers' models on the shard."""
        predictors = {maker.name: maker.predictor for maker in self.makers}
        labels = {head: label for maker in self.makers for head, label in maker.labels.items()}
        applicability = {maker.name: maker.applicability for maker in self.makers if maker.applicability}
        return ShardInference(self.shard, predictors, labels, applicability)

    @contextlib.contextmanager
    def open_writers(self) -> Iterator[dict[str, LabelWriter]]:
        """Hold a writer for each head; the label shards are published at the end, none of them after an error."""
        writers: dict[str, LabelWriter] = {}
        with contextlib.ExitStack() as opened:
            for head, writer in itertools.chain.from_iterable(maker.writers(self.shard) for maker in self.makers):
                opened.callback(writer.discard)
                writers[head] = writer
            yield writers
            for writer in writers.values():
                writer.close()
            for folder in (folder for maker in self.makers for folder in maker.folders.values()):
                folder.publish(self.shard)


@contextlib.contextmanager
def exclusive(inputs: Inputs) -> Iterator[None]:
    """Hold the locks of all label folders: another run with these teachers would write the same label shards."""
    runtime, makers = inputs.runtime, label_makers(inputs)
    step = next((maker.step for maker in makers), LABEL_STEP)
    with contextlib.ExitStack() as locks:
        for path in sorted(folder.path for maker in makers for folder in maker.folders.values()):
            lock = runtime.root / LOCKS / path
            locks.enter_context(hold_lock(lock, waiting(step, runtime), on_lost=runtime.stop.set))
        yield


def label_makers(inputs: Inputs, sets: Mapping[str, Collection[str]] | None = None) -> list[LabelMaker]:
    """Return the student if it is among the inputs, else the teachers.

    `sets`: those of the pool that a teacher labels, by teacher, of teachers that don't label all.
    They know the facts of the label shards of the previous artifact and of finished parts.
    """
    facts: dict[str, ShardFacts] = {}
    for entry in inputs.previous.load(LABEL_INDEX, read_json) if inputs.previous else []:
        facts[entry["path"]] = {
            "size": entry["size"],
            "sha256": entry["sha256"],
            "failed": entry["failed"],
            "inapplicable": entry["inapplicable"],
        }
    for part in inputs.parts:
        facts |= part["facts"]
    artifacts = inputs.of_kind(STUDENT) or inputs.of_kind("teacher")
    own = sets or {}
    return [LabelMaker(name, artifact, inputs.runtime, facts, own.get(name)) for name, artifact in artifacts.items()]


def label_pool(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Label what is missing, and write the index of the pool's label shards by these teachers, or by the student.

    `config`: `require`, metrics that teachers must reach; `labels`, the sets of teachers that don't label all of them;
    `batch`; `max_failed`, the share of labels that may fail. Raises DataError if a teacher may not label, as
    `check_gate` does, or if more labels failed.
    """
    check_gate(config["require"], inputs.of_kind("teacher"))
    makers = label_makers(inputs, config.get(SETS))
    shards = [(name, shard) for name, shard, _ in pool_shards(inputs["pool"], inputs.of_kind("data"))]
    with exclusive(inputs):
        jobs = pending_jobs(makers, shards, inputs.force and not inputs.parts)
        label_shards(jobs, config["batch"], inputs.runtime)
    entries = [
        entry
        for name, shard in shards
        for maker in makers
        if maker.labels_set(name)
        for entry in _entries(name, shard, maker)
    ]
    write_json(out / LABEL_INDEX, entries)
    _check_failed(entries, config["max_failed"])
    done = [*inputs.parts, summarize(jobs)]
    return {
        "shards": len(entries),
        "labelled_now": sum(part["images"] for part in done),
        "failed": sum(entry["failed"] for entry in entries),
        "choices": {name: choice for part in done for name, choice in part["choices"].items()},
        "inapplicable": inapplicable_shares(entries),
        **({"worker_seconds": sum(part["seconds"] for part in inputs.parts)} if inputs.parts else {}),
        EXTERNAL_FILES: {entry["path"]: {"size": entry["size"], "sha256": entry["sha256"]} for entry in entries},
    }


def pending_jobs(
    makers: Sequence[LabelMaker], shards: Sequence[tuple[str, ImageShard]], force: bool = False
) -> list[ShardJob]:
    """Return the jobs that are still to do on these (set, image shard); with `force`, all of them."""
    in_parallel(len, [shard for _, shard in shards])  # loads indexes, which a remote root would give one by one
    for maker in makers:
        wanted = [] if force else [shard for name, shard in shards if maker.labels_set(name)]
        for folder in maker.folders.values():
            folder.refresh(wanted)
    jobs = [
        ShardJob(name, shard, [maker for maker in makers if maker.labels_set(name) and (force or not maker.has(shard))])
        for name, shard in shards
    ]
    return [job for job in jobs if job.makers]


def inapplicable_shares(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return by maker and set the share of labelled images with an applicability below INAPPLICABLE, where known."""
    counts: dict[tuple[str, str], list[int]] = {}
    for entry in entries:
        if entry["inapplicable"] is not None:
            counted = counts.setdefault((entry["teacher"], entry["set"]), [0, 0])
            counted[0] += entry["inapplicable"]
            counted[1] += entry["rows"] - entry["failed"]
    shares: dict[str, dict[str, float]] = {}
    for (maker, name), (below, rows) in counts.items():
        shares.setdefault(maker, {})[name] = below / max(rows, 1)
    return shares


def summarize(jobs: Sequence[ShardJob]) -> dict[str, Any]:
    """Summarize jobs that are done: images, the facts of the label shards, and how each maker was computed."""
    used = {maker.name: maker for job in jobs for maker in job.makers}
    facts = [maker.facts_of(job.shard) for job in jobs for maker in job.makers]
    return {
        "images": sum(len(job.shard) for job in jobs),
        "facts": {path: known for of_job in facts for path, known in of_job.items()},
        "choices": {name: maker.predictor.compute.describe() for name, maker in used.items()},
    }


def label_shards(jobs: Sequence[ShardJob], batch: int, runtime: Runtime) -> None:
    """Label image shards one after the other, each by all its makers at once."""
    step = next((maker.step for job in jobs for maker in job.makers), LABEL_STEP)
    total, done, began = sum(len(job.shard) for job in jobs), 0, time.perf_counter()
    with contextlib.closing(label_batches((job.inference() for job in jobs), batch, runtime)) as batches:
        for job in jobs:
            with job.open_writers() as writers:
                for batch_rows in itertools.islice(batches, -(-len(job.shard) // batch)):
                    runtime.check_stop(step)
                    write_labels(batch_rows, writers)
                    done += len(batch_rows.rows)
                    rate = done / (time.perf_counter() - began)
                    runtime.progress(step, done / total, f"{done}/{total} images, {rate:.0f} images/s")


def write_labels(batch: ShardRows, writers: Mapping[str, LabelWriter]) -> None:
    """Append a labelled batch to the label shard of every head."""
    for head, writer in writers.items():
        for position, (key, row) in enumerate(zip(batch.keys, batch.labels[head], strict=True)):
            reason = batch.reason(head, position)
            writer.add(key, row, "failed" if reason else "ok", reason)


def _entries(name: str, shard: ImageShard, maker: LabelMaker) -> Iterator[dict[str, Any]]:
    for head, folder in maker.folders.items():
        yield {
            "set": name,
            "shard": shard.name,
            "image_shard": shard.sha256,
            "teacher": maker.label_name(head),
            "path": folder.path_of(shard),
            "rows": len(shard),
            **folder.facts_of(shard),
        }


def _check_failed(entries: list[dict[str, Any]], most: float) -> None:
    rows, failed = sum(entry["rows"] for entry in entries), sum(entry["failed"] for entry in entries)
    if failed > most * rows:
        worst = max(entries, key=lambda entry: entry["failed"])
        raise DataError(
            f"{failed} of {rows} labels failed, more than labelling.max_failed = {most:g} allows; most in "
            f"{worst['set']}/{worst['shard']} by {worst['teacher']}. See the `reason` column of {worst['path']}."
        )
