"""What the student learns from: every pool image with, for each teacher, a true label if there is one, else its own."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import tasks
from ingest.dataset import IngestedSet, check_labels_fit
from ingest.pool import pool_shards, rejected_rows
from ingest.rejections import REJECTED_LABELS
from ingest.true_labels import drop_unlabelled
from pipeline.data.dataset import DatasetShard, ImageDataset, LabelSource
from pipeline.errors import DataError
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import Inputs, read_json
from pipeline.storage.root import in_parallel
from pipeline.stores.images import ImageShard
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
    index = inputs["label"].load("labels.json", read_json)
    pseudo = {(entry["set"], entry["shard"], entry["teacher"]): entry["path"] for entry in index}
    truths = {} if config.labels == "pseudo_only" else _truths(config, heads, inputs)
    rejected = rejected_rows(inputs.artifacts)
    for name, shard, rows in pool_shards(inputs["pool"], inputs.of_kind("data")):
        label_sources = {}
        for head in heads.values():
            reader = tasks.label(head.space)
            found = [source for truth in truths.get(head.teacher, ()) for source in truth.label_sources(name, shard)]
            if config.labels != "true_only":
                path = _path(pseudo, name, shard.name, head.teacher)
                without = rejected.get((name, shard.name, head.teacher), frozenset())
                found.append(LabelSource(inputs["label"].external_file(path), reader, head.threshold, without=without))
            if found:
                label_sources[head.teacher] = tuple(found)
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


class HeadTruth:
    """True labels of one head: those of the training images of a set that speaks its teacher's language."""

    def __init__(self, head: StudentHead, name: str, found: IngestedSet) -> None:
        self.head, self.name, self.found = head, name, found
        shards = found.images("train").shards
        self._places = {key: (shard.name, row) for shard in shards for row, key in enumerate(shard.keys)}

    def label_sources(self, name: str, shard: ImageShard) -> list[LabelSource]:
        """The labels for a shard of the set `name`: its own, or those of images that are in both sets."""
        if name == self.name:
            return [self._label_source(shard.name)]
        places = [self._places.get(key, ("", -1)) for key in shard.keys]
        return [
            self._label_source(other, tuple(row if where == other else -1 for where, row in places))
            for other in sorted({where for where, _ in places} - {""})
        ]

    def _label_source(self, shard: str, rows: tuple[int, ...] | None = None) -> LabelSource:
        task = self.head.space.task
        return LabelSource(self.found.true_labels(task, "train", shard), tasks.label(self.head.space), rows=rows)


def _truths(config: StudentConfig, heads: Mapping[str, StudentHead], inputs: Inputs) -> dict[str, list[HeadTruth]]:
    """The true labels of every head that has any, those that win first: the sets that the recipe names for it, and
    then the one that its teacher learned from.
    """
    sets = {name: IngestedSet(made) for name, made in inputs.of_kind("data").items()}
    truths = {}
    for teacher, head in heads.items():
        for name in config.truths.get(teacher, ()):
            check_labels_fit(teacher, head.space, name, sets[name].spaces)
        own = [head.data] if head.data in sets and head.data is not None else []
        names = dict.fromkeys([*config.truths.get(teacher, ()), *own])
        truths[teacher] = [HeadTruth(head, name, sets[name]) for name in names]
    return truths


def _path(pseudo: Mapping[tuple[str, str, str], str], name: str, shard: str, teacher: str) -> str:
    if (name, shard, teacher) not in pseudo:
        raise DataError(f"No labels by teacher {teacher!r} for {name}/{shard}: run the label step again.")
    return pseudo[name, shard, teacher]
