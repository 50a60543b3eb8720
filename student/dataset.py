"""What the student learns from: every pool image with, for each teacher, a true label if there is one, else its own."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import tasks
from ingest.dataset import IngestedSet
from ingest.label_precedence import LabelPrecedence
from ingest.pool import pool_shards, rejected_rows
from ingest.rejections import REJECTED_LABELS
from ingest.true_labels import drop_unlabelled
from pipeline.data.dataset import DatasetShard, ImageDataset
from pipeline.errors import DataError
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import Inputs
from pipeline.storage.root import in_parallel
from pipeline.stores.labels import LabelSpace
from tasks.teacher import Teacher, TeacherSchedule


@dataclasses.dataclass(frozen=True)
class StudentHead:
    """One head of the student: the teacher it learns from."""

    teacher: str
    space: LabelSpace
    data: str | None
    """The set the teacher was trained on: its true labels speak the same language."""
    schedule: TeacherSchedule | None
    threshold: float


def heads_of(config: StudentConfig, inputs: Inputs) -> dict[str, StudentHead]:
    """The heads, one per teacher that has a weight above zero."""
    heads = {}
    for name, made in inputs.of_kind("teacher").items():
        if config.loss_weights.get(name) == 0:
            continue
        about = Teacher.load(made)
        threshold = threshold_for(config, name, about.space)
        heads[name] = StudentHead(name, about.space, about.data, about.schedule, threshold)
    return heads


def threshold_for(config: StudentConfig, teacher: str, space: LabelSpace) -> float:
    """The smallest score kept: by teacher, by task, or the task's default (0.5 for boxes and masks, as in MuST)."""
    named = config.thresholds
    return named.get(teacher, named.get(space.task, tasks.label(space).default_threshold))


def join(config: StudentConfig, heads: Mapping[str, StudentHead], inputs: Inputs) -> ImageDataset:
    """Pool images and labels, joined shard by shard. Image shards are pooled; each image is one draw in an epoch."""
    return ImageDataset(in_parallel(drop_unlabelled, list(student_shards(config, heads, inputs))))


def student_shards(config: StudentConfig, heads: Mapping[str, StudentHead], inputs: Inputs) -> Iterator[DatasetShard]:
    """The shards of the pool with every label there may be, in order; whether there is one is not looked at yet. A
    teacher's label that was rejected by hand is as good as none; a true label is not affected by that.
    """
    sets = {name: IngestedSet(made) for name, made in inputs.of_kind("data").items()}
    precedence = LabelPrecedence(config.labels, config.truths, sets, inputs.artifacts)
    for name, shard, rows in pool_shards(inputs["pool"], inputs.of_kind("data")):
        label_sources = {}
        for head in heads.values():
            found = precedence.sources(head, name, shard)
            if config.labels != "true_only" and all(ranked.truth for ranked in found):
                raise DataError(
                    f"No labels by teacher {head.teacher!r} for {name}/{shard.name}: run the label step again."
                )
            if found:
                label_sources[head.teacher] = tuple(ranked.source for ranked in found)
        if label_sources:
            yield DatasetShard(shard, rows, label_sources)


def count_rejected(inputs: Inputs) -> dict[str, Any]:
    """For the step's counts, where labels are rejected: how many pseudo labels of the pool are, by teacher, and how
    many are of no image of the pool or of another version of their teacher.
    """
    if REJECTED_LABELS not in inputs.artifacts:
        return {}
    counts: collections.Counter[str] = collections.Counter()
    for (_, _, teacher), rows in rejected_rows(inputs.artifacts).items():
        counts[teacher] += len(rows)
    unmatched = inputs[REJECTED_LABELS].counts["rejections"] - counts.total()
    return {"rejected": dict(counts), **({"unmatched_rejections": unmatched} if unmatched else {})}
