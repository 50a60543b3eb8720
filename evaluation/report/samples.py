"""Sample pictures of a report: images of the pool with the labels that the student learned from."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc
from PIL import Image

import tasks
from evaluation.report.figures import Picture, labelled
from evaluation.report.run_record import RunRecord
from ingest.dataset import IngestedSet
from ingest.label_precedence import LabelPrecedence
from ingest.pool import read_pool
from pipeline.data.bands import RGB, decode_picture
from pipeline.steps.artifact import Artifact
from pipeline.storage.root import StoredFile
from pipeline.stores.images import ImageRow, ImageShard
from pipeline.stores.labels import Label, LabelShard, LabelSpace, Value
from pipeline.stores.naming import is_student
from tasks.drawing import THUMBNAIL_SIDE, thumbnail

REJECTED = "rejected by hand"
MAX_PICTURES = 80
"""Of the pool, and again of the held-out images: keeps the page below a few megabytes."""


@dataclasses.dataclass(frozen=True)
class SampleHead:
    """A teacher, its calibrated labels, the threshold they are read with, and the set `data` it was trained on."""

    teacher: str
    label: Label
    threshold: float
    data: str | None
    is_learned: bool
    """True if the student learned from it."""
    applicability: float = 0.0
    """Labels of less applicability are not used."""

    @property
    def space(self) -> LabelSpace:
        return self.label.space

    @property
    def least(self) -> str:
        """The threshold in words."""
        return f"{'score' if self.label.calibration is None else 'probability'} ≥ {self.threshold:g}"

    def uncalibrated(self) -> SampleHead:
        """Return the head for labels that others made, the truth or the student: their scores mean themselves."""
        return dataclasses.replace(self, label=tasks.label(self.space))


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image by its place: the row of a shard of one split of a set."""

    dataset: str
    split: str
    shard: ImageShard
    row: int
    channels: int = RGB

    @property
    def metadata(self) -> ImageRow:
        return self.shard.row(self.row)

    def open(self, min_size: tuple[int, int] = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)) -> Image.Image:
        """Return the upright image, at least `min_size` (width, height) unless it is smaller itself."""
        return decode_picture(self.shard.read(self.row), min_size, self.channels)


class RunSamples:
    """The images and labels of a run that pictures are drawn from; remembers which classes were drawn."""

    def __init__(self, run: RunRecord) -> None:
        self.run = run
        self.sets = {name: IngestedSet(artifact) for name, artifact in run.of_kind("data").items()}
        self.heads = {head.teacher: head for head in self._heads()}
        self.drawn_classes: dict[str, tuple[LabelSpace, set[int]]] = {}
        """Label space and classes that were drawn in masks, by teacher."""
        self._opened: dict[str, LabelShard] = {}

    def _heads(self) -> Iterator[SampleHead]:
        kept, labelling = self.run.kept(), self.run.artifacts.get(self.run.label_step)
        for name, teacher in self.run.teachers().items():
            label = teacher.label
            read = kept.get(name, {"threshold": label.default_threshold, "applicability": 0.0})
            is_live = labelling is not None and f"teacher.{name}" not in labelling.manifest["inputs"]
            is_learned = (name in kept or not kept) and not is_live
            yield SampleHead(name, label, read["threshold"], teacher.data, is_learned, read["applicability"])

    @functools.cached_property
    def precedence(self) -> LabelPrecedence:
        """The labels of pool images as the student learned them, or would by default."""
        student = self.run.student
        config = student.manifest["config"]["student"] if student else {}
        labels, truths = config.get("labels", "true_first"), config.get("truths", {})
        return LabelPrecedence(labels, truths, self.sets, self.run.artifacts, self.run.label_step)

    def read_label(self, file: StoredFile, head: SampleHead, row: int, *least: float) -> Value | None:
        """Return the label in a row of a label shard, None if it has none; `least` is as for `LabelShard.value`."""
        if file.sha256 not in self._opened:
            self._opened[file.sha256] = LabelShard(file, head.label)
        return self._opened[file.sha256].value(row, *least)

    def has_true_labels(self, head: SampleHead, dataset: str) -> bool:
        """Return True if a set has true labels that mean the same as the head's."""
        return self.sets[dataset].spaces.get(head.label.task) == head.space

    def true_label(self, head: SampleHead, image: StoredImage) -> Value | None:
        """Return the true label of an image for a head, None if its set has none."""
        if not self.has_true_labels(head, image.dataset):
            return None
        file = self.sets[image.dataset].true_labels(head.label.task, image.split, image.shard.name)
        return self.read_label(file, head, image.row)

    def draw(self, image: Image.Image, head: SampleHead, value: Value | None, title: str, note: str = "") -> Picture:
        """Return a thumbnail with a label on it. Without a label the image is pale."""
        if value is None:
            return Picture(Image.blend(image, Image.new("RGB", image.size, "grey"), 0.7), title, "no label")
        if head.label.task == "segmentation":
            numbers = np.unique(value["classes"])
            _, drawn = self.drawn_classes.setdefault(head.teacher, (head.space, set()))
            drawn.update(int(number) for number in numbers if number < len(head.space.classes))
        return labelled(image, head.label, value, title, note)


def pool_strips(samples: RunSamples) -> Iterator[list[Picture]]:
    """Yield, for some images of the pool, the image and what every head learned from it."""
    heads = [head for head in samples.heads.values() if head.is_learned]
    if "pool" not in samples.run.artifacts or not heads:
        return
    for stored in pool_images(samples, max(3, min(8, MAX_PICTURES // (len(heads) + 1)))):
        image = thumbnail(stored.open())
        pictures = [Picture(image, stored.metadata.source, stored.dataset)]
        for head in heads:
            value, origin, drawn_as = learned_label(samples, head, stored)
            picture = samples.draw(image, drawn_as, value, head.teacher, f"{head.label.task}, {origin}")
            pictures.append(dataclasses.replace(picture, note=REJECTED) if origin == REJECTED else picture)
        yield pictures


def pool_images(samples: RunSamples, count: int, pool: Artifact | None = None) -> list[StoredImage]:
    """Return `count` images of the pool, or of a stage's, from its sets in turn, in each by the hash of the bytes."""
    table = read_pool(pool or samples.run.artifacts["pool"])
    by_set = []
    for name in pc.unique(table["set"]).to_pylist():
        first = table.filter(pc.equal(table["set"], name)).sort_by("key").slice(0, count)
        shards = {shard.name: shard for shard in samples.sets[name].images("train").shards}
        channels = samples.sets[name].channels
        rows = ((shards[row["shard"]], row["row"]) for row in first.to_pylist())
        by_set.append([StoredImage(name, "train", shard, row, channels) for shard, row in rows])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_set))
    return list(itertools.islice((image for image in turns if image), count))


def learned_label(samples: RunSamples, head: SampleHead, image: StoredImage) -> tuple[Value | None, str, SampleHead]:
    """Return the label that the student learned from, whether it is true or pseudo, or why there is none, and the head
    to draw it with.
    """
    reason = "no label"
    for source, truth in samples.precedence.sources(head, image.dataset, image.shard):
        row = source.label_row(image.row)
        value = None if row < 0 else samples.read_label(source.file, head, row, source.threshold, source.applicability)
        if value is None:
            reason = REJECTED if image.row in source.excluded else reason
        elif truth is not None:
            return value, "true label" if truth == head.data else f"true label in {truth}", head.uncalibrated()
        else:
            by_student = source.origin is not None and is_student(source.origin.origin_name)
            drawn_as, kind = (head.uncalibrated(), "label of a student") if by_student else (head, "pseudo label")
            return value, f"{kind}, {drawn_as.least}" if head.threshold else kind, drawn_as
    return None, reason, head
