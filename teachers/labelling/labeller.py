"""The step that labels the pool: every teacher, every shard, one decode for all teachers that still lack it.

A label shard is addressed by its teacher and the image shard's content, `labels/<teacher>-<digest>/<sha>.parquet`,
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
from pipeline.artifacts import ELSEWHERE, Artifact, Inputs, read_json, write_json
from pipeline.claims import claimed
from pipeline.errors import DataError
from pipeline.images import ImageShard
from pipeline.labels import Label, LabelWriter, about_store, store_name
from pipeline.roots import in_parallel
from pipeline.runtime import Runtime
from pipeline.workspace import waiting
from tasks.learning import Predictor
from tasks.pool import pool_shards
from tasks.teacher import Teacher, load_teacher
from teachers.labelling.stages import Batch, Stages, label_batches
from teachers.labelling.store import Facts, LabelFolder

INDEX = "labels.json"


@dataclasses.dataclass
class Labelling:
    """A teacher at work: its predictor (loaded when first needed) and where its label shards go."""

    name: str
    artifact: Artifact
    labels: LabelFolder
    runtime: Runtime

    @functools.cached_property
    def label(self) -> Label:
        """What its labels are on disk."""
        return tasks.label(Teacher.of(self.artifact).space)

    @functools.cached_property
    def predictor(self) -> Predictor:
        """Its model, laid out for this machine."""
        return load_teacher(self.artifact, self.runtime)

    def write(self, shard: ImageShard) -> LabelWriter:
        """A writer of its label shard."""
        path = self.labels.root.here(self.labels.file(shard))
        return LabelWriter(path, self.label, about_store(self.label, self.artifact.digest, shard.sha256))


@dataclasses.dataclass(frozen=True)
class Job:
    """An image shard and the teachers that lack it."""

    shard: ImageShard
    teachers: list[Labelling]

    def stages(self) -> Stages:
        """The work it is."""
        predictors = {teacher.name: teacher.predictor for teacher in self.teachers}
        return Stages(self.shard, predictors, {teacher.name: teacher.label for teacher in self.teachers})

    @contextlib.contextmanager
    def writing(self) -> Iterator[dict[str, LabelWriter]]:
        """A writer per teacher; their shards appear at the end, or not at all if it ends in an error."""
        writers: dict[str, LabelWriter] = {}
        try:
            for teacher in self.teachers:
                writers[teacher.name] = teacher.write(self.shard)
            yield writers
            for writer in writers.values():
                writer.close()
            for teacher in self.teachers:
                teacher.labels.publish(self.shard)
        finally:
            for writer in writers.values():
                writer.discard()


@contextlib.contextmanager
def alone(inputs: Inputs) -> Iterator[None]:
    """While inside, no other run labels with these teachers: whatever pool it is for, the label shards are the same."""
    runtime = inputs.runtime
    with contextlib.ExitStack() as held:
        for folder in sorted(_folder(name, artifact) for name, artifact in inputs.of_kind("teacher").items()):
            claim = runtime.root / "claims" / folder
            held.enter_context(claimed(claim, waiting("label", runtime), lost=runtime.stop.set))
        yield


def _folder(name: str, teacher: Artifact) -> str:
    """Where a teacher's label shards are in the root."""
    return f"labels/{store_name(name, teacher.digest)}"


def open_teachers(inputs: Inputs) -> list[Labelling]:
    """The teachers among the inputs, ready to label. What the labels before, or parts of these, tell of label shards
    need not be read off them.
    """
    known: dict[str, Facts] = {}
    for entry in inputs.before.load(INDEX, read_json) if inputs.before else []:
        known[entry["path"]] = {"size": entry["size"], "sha256": entry["sha256"], "failed": entry["failed"]}
    for part in inputs.parts:
        known |= part["facts"]
    found = []
    for name, artifact in inputs.of_kind("teacher").items():
        folder = _folder(name, artifact)
        mine = {path: facts for path, facts in known.items() if path.startswith(f"{folder}/")}
        found.append(Labelling(name, artifact, LabelFolder(inputs.runtime.root, folder, mine), inputs.runtime))
    return found


def label_pool(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Label what is missing and write the index of all label shards of this pool and these teachers.

    Raises DataError if a teacher missed the metric it must reach, or if more images failed than `max_failed` allows.
    """
    check_required(config["require"], inputs.of_kind("teacher"))
    teachers = open_teachers(inputs)
    shards = list(pool_shards(inputs["pool"], inputs.of_kind("data")))
    with alone(inputs):
        jobs = jobs_left(teachers, [shard for _, shard, _ in shards], inputs.anew and not inputs.parts)
        label_shards(jobs, config["batch"], inputs.runtime)
    entries = [_entry(name, shard, teacher) for name, shard, _ in shards for teacher in teachers]
    write_json(out / INDEX, entries)
    _check_failed(entries, config["max_failed"])
    done = [*inputs.parts, describe(jobs)]
    return {
        "shards": len(entries),
        "labelled_now": sum(part["images"] for part in done),
        "failed": sum(entry["failed"] for entry in entries),
        "choices": {name: choice for part in done for name, choice in part["choices"].items()},
        ELSEWHERE: {entry["path"]: {"size": entry["size"], "sha256": entry["sha256"]} for entry in entries},
    }


def jobs_left(teachers: Sequence[Labelling], shards: Sequence[ImageShard], anew: bool = False) -> list[Job]:
    """What is still to label; `anew`: all of it."""
    in_parallel(len, shards)  # their indexes, which come one by one where they are elsewhere
    for teacher in teachers:
        teacher.labels.look([] if anew else shards)
    jobs = [Job(shard, [teacher for teacher in teachers if anew or not teacher.labels.has(shard)]) for shard in shards]
    return [job for job in jobs if job.teachers]


def describe(jobs: Sequence[Job]) -> dict[str, Any]:
    """Of jobs that were done: how many images they were, how each teacher was run, and what is known of the files."""
    at_work = {teacher.name: teacher for job in jobs for teacher in job.teachers}
    facts: dict[str, Facts] = {}
    for job in jobs:
        facts |= {teacher.labels.file(job.shard): teacher.labels.facts_of(job.shard) for teacher in job.teachers}
    return {
        "images": sum(len(job.shard) for job in jobs),
        "facts": facts,
        "choices": {name: teacher.predictor.choice.describe() for name, teacher in at_work.items()},
    }


def label_shards(jobs: Sequence[Job], batch: int, runtime: Runtime) -> None:
    """Label image shards one behind the other, each by all its teachers at once."""
    progress = Progress(runtime, sum(len(job.shard) for job in jobs))
    with contextlib.closing(label_batches((job.stages() for job in jobs), batch, runtime)) as batches:
        for job in jobs:
            with job.writing() as writers:
                for done in itertools.islice(batches, -(-len(job.shard) // batch)):
                    runtime.check_stop("label")
                    write_labels(done, writers)
                    progress.add(len(done.rows))


def write_labels(done: Batch, writers: Mapping[str, LabelWriter]) -> None:
    """Append a batch to the label shard of every teacher."""
    for name, writer in writers.items():
        for position, (key, row) in enumerate(zip(done.keys, done.labels[name], strict=True)):
            reason = done.reasons.get(position)
            writer.add(key, row, "failed" if reason else "ok", reason)


def _entry(name: str, shard: ImageShard, teacher: Labelling) -> dict[str, Any]:
    return {
        "set": name,
        "shard": shard.name,
        "image_shard": shard.sha256,
        "teacher": teacher.name,
        "path": teacher.labels.file(shard),
        "rows": len(shard),
        **teacher.labels.facts_of(shard),
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
        teacher = Teacher.of(made[name])
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


class Progress:
    """Images labelled so far, and how fast."""

    def __init__(self, runtime: Runtime, total: int) -> None:
        self._runtime, self._total, self._done = runtime, total, 0
        self._began = time.perf_counter()

    def add(self, images: int) -> None:
        """So many more are labelled."""
        self._done += images
        rate = self._done / (time.perf_counter() - self._began)
        line = f"{self._done}/{self._total} images, {rate:.0f} images/s"
        self._runtime.progress("label", self._done / self._total, line)
