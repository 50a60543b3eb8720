"""The step that labels the pool: every teacher, every shard, one decode for all teachers that still lack it. So does
the student once it is trained, with all its heads at once, for whoever wants to compare.

A label shard is addressed by its maker and the image shard's content, `labels/<maker>-<digest>/<sha>.parquet`,
and appears whole or not at all. A rerun labels what is missing: new shards alone, or a new teacher alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tasks
from ingest.pool import pool_shards
from pipeline.errors import DataError
from pipeline.steps.artifact import EXTERNAL_FILES, Artifact, Inputs, read_json, write_json
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import waiting
from pipeline.storage.lock import hold_lock
from pipeline.storage.root import in_parallel
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import Label, LabelSpace, LabelWriter, store_metadata
from pipeline.stores.naming import LABELLING, store_name, student_maker
from tasks.prediction import Predictor, load_network
from tasks.teacher import Teacher, load_teacher
from teachers.labelling.inference import ShardInference, ShardRows, label_batches
from teachers.labelling.label_folder import Facts, LabelFolder

INDEX = "labels.json"
STUDENT = "student"
"""The step whose network has a head for every teacher."""


@dataclasses.dataclass(frozen=True)
class Maker:
    """Whose labels they are: a teacher, with a head called as itself, or the student, with one for each teacher."""

    name: str
    artifact: Artifact

    @property
    def is_student(self) -> bool:
        """Whether its heads, and who labels under which name, are the student's."""
        return self.artifact.manifest["step"] == STUDENT

    @functools.cached_property
    def labels(self) -> dict[str, Label]:
        """By head, what its labels are on disk."""
        return {head: tasks.label(space) for head, space in self._spaces().items()}

    def _spaces(self) -> dict[str, LabelSpace]:
        if not self.is_student:
            return {self.name: Teacher.load(self.artifact).space}
        heads = self.artifact.load("model.json", read_json)["heads"]
        return {head: LabelSpace.from_json(space) for head, space in heads.items()}

    def called(self, head: str) -> str:
        """What the labels of a head go by."""
        return student_maker(head) if self.is_student else head

    def folders(self) -> dict[str, str]:
        """By head, where its label shards are in the root."""
        return {head: f"labels/{store_name(self.called(head), self.artifact.digest)}" for head in self.labels}

    def open(self, runtime: Runtime) -> Predictor:
        """Its model, laid out for this machine."""
        return (load_network if self.is_student else load_teacher)(self.artifact, runtime)


@dataclasses.dataclass
class Labelling:
    """A maker at work: its predictor (loaded when first needed), and by head where its label shards go."""

    maker: Maker
    folders: dict[str, LabelFolder]
    runtime: Runtime

    @property
    def name(self) -> str:
        return self.maker.name

    @functools.cached_property
    def predictor(self) -> Predictor:
        """Its model."""
        return self.maker.open(self.runtime)

    def has(self, shard: ImageShard) -> bool:
        """Whether an image shard is labelled."""
        return all(folder.has(shard) for folder in self.folders.values())

    def look(self, shards: Sequence[ImageShard]) -> None:
        """Learn which of these are labelled."""
        for folder in self.folders.values():
            folder.look(shards)

    def publish(self, shard: ImageShard) -> None:
        """The labels of a shard were just written, whole: now they are in the root."""
        for folder in self.folders.values():
            folder.publish(shard)

    def facts_of(self, shard: ImageShard) -> dict[str, Facts]:
        """What is known of the labels of an image shard, by their paths in the root."""
        return {folder.file(shard): folder.facts_of(shard) for folder in self.folders.values()}

    def writers(self, shard: ImageShard) -> Iterator[tuple[str, LabelWriter]]:
        """By head, a writer of its label shard."""
        for head, folder in self.folders.items():
            label = self.maker.labels[head]
            about = store_metadata(label, self.maker.artifact.digest, shard.sha256)
            yield head, LabelWriter(folder.root.local_path(folder.file(shard)), label, about)


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """An image shard and the teachers that lack it."""

    shard: ImageShard
    teachers: list[Labelling]

    def stages(self) -> ShardInference:
        """The work it is."""
        predictors = {teacher.name: teacher.predictor for teacher in self.teachers}
        labels = {head: label for teacher in self.teachers for head, label in teacher.maker.labels.items()}
        return ShardInference(self.shard, predictors, labels)

    @contextlib.contextmanager
    def writing(self) -> Iterator[dict[str, LabelWriter]]:
        """A writer per head of the teachers; their shards appear at the end, or not at all if it ends in an error."""
        writers: dict[str, LabelWriter] = {}
        try:
            for teacher in self.teachers:
                for head, writer in teacher.writers(self.shard):
                    writers[head] = writer
            yield writers
            for writer in writers.values():
                writer.close()
            for teacher in self.teachers:
                teacher.publish(self.shard)
        finally:
            for writer in writers.values():
                writer.discard()


@contextlib.contextmanager
def alone(inputs: Inputs) -> Iterator[None]:
    """While inside, no other run labels with these teachers: whatever pool it is for, the label shards are the same."""
    runtime, step = inputs.runtime, LABELLING[STUDENT in inputs.artifacts]
    with contextlib.ExitStack() as held:
        for folder in sorted(folder for maker in makers(inputs) for folder in maker.folders().values()):
            claim = runtime.root / "claims" / folder
            held.enter_context(hold_lock(claim, waiting(step, runtime), on_lost=runtime.stop.set))
        yield


def makers(inputs: Inputs) -> list[Maker]:
    """Who is to label: the teachers among the inputs, or the student."""
    if STUDENT in inputs.artifacts:
        return [Maker(STUDENT, inputs[STUDENT])]
    return [Maker(name, artifact) for name, artifact in inputs.of_kind("teacher").items()]


def open_makers(inputs: Inputs) -> list[Labelling]:
    """Those who are to label, ready to. What the labels before, or parts of these, tell of label shards need not be
    read off them.
    """
    known: dict[str, Facts] = {}
    for entry in inputs.previous.load(INDEX, read_json) if inputs.previous else []:
        known[entry["path"]] = {"size": entry["size"], "sha256": entry["sha256"], "failed": entry["failed"]}
    for part in inputs.parts:
        known |= part["facts"]

    def folder(path: str) -> LabelFolder:
        mine = {file: facts for file, facts in known.items() if file.startswith(f"{path}/")}
        return LabelFolder(inputs.runtime.root, path, mine)

    return [
        Labelling(maker, {head: folder(path) for head, path in maker.folders().items()}, inputs.runtime)
        for maker in makers(inputs)
    ]


def label_pool(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Label what is missing and write the index of all label shards of this pool and these teachers, or the student.

    Raises DataError if a teacher missed the metric it must reach, or if more images failed than `max_failed` allows.
    """
    check_required(config["require"], inputs.of_kind("teacher"))
    teachers = open_makers(inputs)
    shards = list(pool_shards(inputs["pool"], inputs.of_kind("data")))
    with alone(inputs):
        jobs = jobs_left(teachers, [shard for _, shard, _ in shards], inputs.force and not inputs.parts)
        label_shards(jobs, config["batch"], inputs.runtime)
    entries = [entry for name, shard, _ in shards for teacher in teachers for entry in _entries(name, shard, teacher)]
    write_json(out / INDEX, entries)
    _check_failed(entries, config["max_failed"])
    done = [*inputs.parts, describe(jobs)]
    return {
        "shards": len(entries),
        "labelled_now": sum(part["images"] for part in done),
        "failed": sum(entry["failed"] for entry in entries),
        "choices": {name: choice for part in done for name, choice in part["choices"].items()},
        EXTERNAL_FILES: {entry["path"]: {"size": entry["size"], "sha256": entry["sha256"]} for entry in entries},
    }


def jobs_left(teachers: Sequence[Labelling], shards: Sequence[ImageShard], force: bool = False) -> list[ShardJob]:
    """What is still to label; `force`: all of it."""
    in_parallel(len, shards)  # their indexes, which come one by one where they are elsewhere
    for teacher in teachers:
        teacher.look([] if force else shards)
    jobs = [ShardJob(shard, [teacher for teacher in teachers if force or not teacher.has(shard)]) for shard in shards]
    return [job for job in jobs if job.teachers]


def describe(jobs: Sequence[ShardJob]) -> dict[str, Any]:
    """Of jobs that were done: how many images they were, how each teacher was run, and what is known of the files."""
    at_work = {teacher.name: teacher for job in jobs for teacher in job.teachers}
    facts = [teacher.facts_of(job.shard) for job in jobs for teacher in job.teachers]
    return {
        "images": sum(len(job.shard) for job in jobs),
        "facts": {path: known for found in facts for path, known in found.items()},
        "choices": {name: teacher.predictor.choice.describe() for name, teacher in at_work.items()},
    }


def label_shards(jobs: Sequence[ShardJob], batch: int, runtime: Runtime) -> None:
    """Label image shards one behind the other, each by all its teachers at once."""
    step = LABELLING[any(teacher.maker.is_student for job in jobs for teacher in job.teachers)]
    progress = LabelProgress(step, runtime, sum(len(job.shard) for job in jobs))
    with contextlib.closing(label_batches((job.stages() for job in jobs), batch, runtime)) as batches:
        for job in jobs:
            with job.writing() as writers:
                for done in itertools.islice(batches, -(-len(job.shard) // batch)):
                    runtime.check_stop(step)
                    write_labels(done, writers)
                    progress.add(len(done.rows))


def write_labels(done: ShardRows, writers: Mapping[str, LabelWriter]) -> None:
    """Append a batch to the label shard of every head."""
    for head, writer in writers.items():
        for position, (key, row) in enumerate(zip(done.keys, done.labels[head], strict=True)):
            reason = done.reasons.get(position)
            writer.add(key, row, "failed" if reason else "ok", reason)


def _entries(name: str, shard: ImageShard, teacher: Labelling) -> Iterator[dict[str, Any]]:
    for head, folder in teacher.folders.items():
        yield {
            "set": name,
            "shard": shard.name,
            "image_shard": shard.sha256,
            "teacher": teacher.maker.called(head),
            "path": folder.file(shard),
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


def check_required(required: Mapping[str, Mapping[str, float]], made: Mapping[str, Artifact]) -> None:
    """Raise DataError if a teacher is worse than the recipe asks on its held-out images."""
    for name, wanted in required.items():
        teacher = Teacher.load(made[name])
        better = tasks.model(teacher.space).better
        for metric, limit in wanted.items():
            if metric not in teacher.scores:
                known = ", ".join(teacher.scores) or "none: it has no held-out labels"
                raise DataError(f"teachers.{name}.require names {metric!r}; it was measured by: {known}.")
            value = teacher.scores[metric]
            if value < limit if better[metric] == "higher" else value > limit:
                raise DataError(
                    f"Teacher {name!r} may not label: {metric} is {value:.3f} on its held-out images, "
                    f"required {limit:g}. Train it longer, on more data, or lower teachers.{name}.require.{metric}."
                )


class LabelProgress:
    """Images labelled so far, and how fast."""

    def __init__(self, step: str, runtime: Runtime, total: int) -> None:
        self._step, self._runtime, self._total, self._done = step, runtime, total, 0
        self._began = time.perf_counter()

    def add(self, images: int) -> None:
        """So many more are labelled."""
        self._done += images
        rate = self._done / (time.perf_counter() - self._began)
        line = f"{self._done}/{self._total} images, {rate:.0f} images/s"
        self._runtime.progress(self._step, self._done / self._total, line)
