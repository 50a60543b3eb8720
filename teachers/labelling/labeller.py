"""The step that labels the pool: every teacher, every shard, one decode for all teachers that still lack it.

A label shard is addressed by its teacher and the image shard's content, `<root>/labels/<teacher>-<digest>/<sha>.parquet`,
and appears whole or not at all. A rerun labels what is missing: new images alone, or a new teacher alone.
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import tasks
from pipeline.artifacts import Artifact, Inputs, hash_file, read_json, write_json
from pipeline.errors import DataError
from pipeline.images import ImageShard
from pipeline.labels import Label, LabelSpace, LabelWriter, about_store
from pipeline.runtime import Runtime
from tasks.learning import Predictor
from tasks.pool import pool_shards
from teachers.labelling.stages import Batch, Stages, label_batches

INDEX = "labels.json"


@dataclasses.dataclass
class Labelling:
    """A teacher at work: its predictor (loaded when first needed) and where its label shards go."""

    name: str
    artifact: Artifact
    folder: Path
    batch: int
    runtime: Runtime
    predictor: Predictor | None = None

    @property
    def label(self) -> Label:
        space = read_json(self.artifact.path / "teacher.json")["space"]
        return tasks.label(LabelSpace.from_json(space))

    def path(self, shard: ImageShard) -> Path:
        return self.folder / f"{shard.sha256[:16]}.parquet"

    def has(self, shard: ImageShard) -> bool:
        """Whether the label shard is there, readable, and of the right length."""
        try:
            return bool(pq.read_metadata(self.path(shard)).num_rows == len(shard))
        except (OSError, pa.ArrowInvalid):
            return False

    def load(self) -> Predictor:
        if self.predictor is None:
            kind = read_json(self.artifact.path / "teacher.json")["kind"]
            predictor: Predictor = importlib.import_module(f"teachers.{kind}").load(self.artifact.path)
            about = read_json(self.artifact.path / "model.json")
            self.predictor = predictor.settle(self.runtime, about, self.batch)
        return self.predictor


def open_teachers(inputs: Inputs, batch: int) -> list[Labelling]:
    """The teachers among the inputs, ready to label."""
    made = inputs.of_kind("teacher")
    folder = inputs.runtime.root / "labels"
    return [
        Labelling(name, artifact, folder / f"{name}-{artifact.digest[:12]}", batch, inputs.runtime)
        for name, artifact in made.items()
    ]


def label_pool(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Label what is missing and write the index of all label shards of this pool and these teachers.

    Raises DataError if a teacher missed the metric it must reach, or if more images failed than `max_failed` allows.
    """
    check_required(config["require"], inputs.of_kind("teacher"))
    workers = open_teachers(inputs, config["batch"])
    shards = list(pool_shards(inputs["pool"], inputs.of_kind("data")))
    progress = Progress(inputs.runtime, sum(len(shard) for _, shard, _ in shards))
    for _, shard, _ in shards:
        lacking = [worker for worker in workers if not worker.has(shard)]
        if lacking:
            label_shard(shard, lacking, config["batch"], inputs.runtime, progress)
        progress.passed(len(shard), new=bool(lacking))
    entries = [_entry(name, shard, worker, inputs.runtime.root) for name, shard, _ in shards for worker in workers]
    write_json(out / INDEX, entries)
    _check_failed(entries, config["max_failed"])
    choices = {worker.name: worker.predictor.choice.describe() for worker in workers if worker.predictor}
    return {
        "shards": len(entries),
        "labelled_now": progress.new,
        "failed": sum(e["failed"] for e in entries),
        "choices": choices,
    }


def label_shard(shard: ImageShard, workers: list[Labelling], batch: int, runtime: Runtime, progress: Progress) -> None:
    """Label one image shard by all `workers` at once."""
    predictors = {worker.name: worker.load() for worker in workers}
    labels = {worker.name: worker.label for worker in workers}
    writers = {
        worker.name: LabelWriter(
            worker.path(shard), worker.label, about_store(worker.label, worker.artifact.digest, shard.sha256)
        )
        for worker in workers
    }
    try:
        for done in label_batches(Stages(shard, predictors, labels), batch, runtime):
            runtime.check_stop("label")
            _write(done, writers)
            progress.going(len(done.rows))
        for writer in writers.values():
            writer.close()
    finally:
        for writer in writers.values():
            writer.discard()


def _write(done: Batch, writers: Mapping[str, LabelWriter]) -> None:
    for position, key in enumerate(done.keys):
        reason = done.reasons.get(position)
        for name, writer in writers.items():
            if reason:
                writer.add(key, None, "failed", reason)
            else:
                writer.add(key, done.labels[name][position])


def _entry(name: str, shard: ImageShard, worker: Labelling, root: Path) -> dict[str, Any]:
    path = worker.path(shard)
    failed = pq.read_table(path, columns=["status"]).column("status").to_pylist().count("failed")
    return {
        "set": name,
        "shard": shard.name,
        "image_shard": shard.sha256,
        "teacher": worker.name,
        "path": str(path.relative_to(root)),
        "rows": len(shard),
        "failed": failed,
        "sha256": hash_file(path),
        "size": path.stat().st_size,
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
        about = read_json(made[name].path / "teacher.json")
        better = importlib.import_module(f"tasks.{about['space']['task']}.model").TaskModel.better
        for metric, limit in wanted.items():
            if metric not in about["scores"]:
                known = ", ".join(about["scores"]) or "none: it has no held-out labels"
                raise DataError(f"teachers.{name}.require names {metric!r}; it was measured by: {known}.")
            value = about["scores"][metric]
            if value < limit if better[metric] == "higher" else value > limit:
                raise DataError(
                    f"Teacher {name!r} may not label: {metric} is {value:.3f} on its held-out images, "
                    f"required {limit:g}. Train it longer, on more data, or lower teachers.{name}.require.{metric}."
                )


class Progress:
    """Images labelled so far, and how fast."""

    def __init__(self, runtime: Runtime, total: int) -> None:
        self.runtime, self.total = runtime, total
        self.done = self.new = 0
        self._inside = 0
        self._began = time.perf_counter()

    def going(self, images: int) -> None:
        """Images of the current shard."""
        self._inside += images
        rate = (self.new + self._inside) / (time.perf_counter() - self._began)
        share = (self.done + self._inside) / max(self.total, 1)
        self.runtime.progress("label", share, f"{self.done + self._inside}/{self.total} images, {rate:.0f} images/s")

    def passed(self, images: int, new: bool) -> None:
        """A whole shard is there."""
        self.done += images
        self.new += images if new else 0
        self._inside = 0
