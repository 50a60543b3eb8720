"""What the student learns from: every pool image with, for each teacher, a true label if there is one, else its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import tasks
from pipeline.artifacts import Inputs, read_json
from pipeline.config import StudentConfig
from pipeline.errors import DataError
from pipeline.labels import LabelSpace
from pipeline.loader import Layer, Library, Shelf
from tasks.ingest import IngestedSet
from tasks.pool import pool_shards
from tasks.shelves import labelled
from tasks.teacher import Schedule, Teacher


@dataclasses.dataclass(frozen=True)
class Head:
    """One head of the student: the teacher it learns from."""

    teacher: str
    space: LabelSpace
    data: str | None
    """The set the teacher was trained on: its true labels speak the same language."""
    schedule: Schedule | None
    threshold: float


def heads_of(config: StudentConfig, inputs: Inputs) -> dict[str, Head]:
    """The heads, one per teacher that has a weight above zero."""
    heads = {}
    for name, made in inputs.of_kind("teacher").items():
        if config.loss_weights.get(name) == 0:
            continue
        about = Teacher.read(made.path)
        threshold = threshold_for(config, name, about.space)
        heads[name] = Head(name, about.space, about.data, about.schedule, threshold)
    return heads


def threshold_for(config: StudentConfig, teacher: str, space: LabelSpace) -> float:
    """The smallest score kept: by teacher, by task, or the task's default (0.5 for boxes and masks, as in MuST)."""
    named = config.thresholds
    return named.get(teacher, named.get(space.task, tasks.label(space).default_threshold))


def join(config: StudentConfig, heads: Mapping[str, Head], inputs: Inputs) -> Library:
    """Pool images and labels, joined shard by shard. Image shards are pooled; each image is one draw in an epoch."""
    index = read_json(inputs["label"].path / "labels.json")
    pseudo = {(entry["set"], entry["shard"], entry["teacher"]): entry["path"] for entry in index}
    sets = {name: IngestedSet(made) for name, made in inputs.of_kind("data").items()}
    shelves = []
    for name, shard, rows in pool_shards(inputs["pool"], inputs.of_kind("data")):
        layers = {}
        for head in heads.values():
            reader = tasks.label(head.space)
            found = []
            if head.data == name and config.labels != "pseudo_only":
                found.append(Layer(sets[name].truth(head.space.task, "train", shard.name), reader))
            if config.labels != "true_only":
                path = inputs.runtime.root / _path(pseudo, name, shard.name, head.teacher)
                found.append(Layer(path, reader, head.threshold))
            if found:
                layers[head.teacher] = tuple(found)
        if layers:
            shelves.append(labelled(Shelf(shard, rows, layers)))
    return Library(shelves)


def _path(pseudo: Mapping[tuple[str, str, str], str], name: str, shard: str, teacher: str) -> Path:
    if (name, shard, teacher) not in pseudo:
        raise DataError(f"No labels by teacher {teacher!r} for {name}/{shard}: run the label step again.")
    return Path(pseudo[name, shard, teacher])
