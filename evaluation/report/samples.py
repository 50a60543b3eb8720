"""The pictures of a report: images of the pool with the labels that the student learned from."""

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
from ingest.pool import read_pool, rejected_rows
from pipeline.data.decode import decode
from pipeline.steps.artifact import read_json
from pipeline.storage.root import StoredFile
from pipeline.stores.images import ImageRow, ImageShard
from pipeline.stores.labels import Label, LabelShard, LabelSpace, Value
from tasks.drawing import THUMBNAIL_SIDE, thumbnail

REJECTED = "rejected by hand"
MOST_PICTURES = 80
"""Of the pool, and again of the held-out images: what keeps the page below a few megabytes."""


@dataclasses.dataclass(frozen=True)
class SampleHead:
    """A teacher's task: its labels, the threshold they are read with, the set the teacher was trained on, and whether
    the student learned it.
    """

    name: str
    label: Label
    threshold: float
    home: str | None
    is_learned: bool


@dataclasses.dataclass(frozen=True)
class Spot:
    """An image where it is stored: a row of a shard of one split of a set."""

    dataset: str
    split: str
    shard: ImageShard
    row: int

    @property
    def about(self) -> ImageRow:
        return self.shard.row(self.row)

    def open(self, enough: tuple[int, int] = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)) -> Image.Image:
        """The upright image, of at least the size (width, height) `enough` unless it is smaller itself."""
        return decode(self.shard.read(self.row), at_least=enough)


class Album:
    """What pictures of a run are made from; remembers which classes were drawn."""

    def __init__(self, run: RunRecord) -> None:
        self.run = run
        self.sets = {name: IngestedSet(made) for name, made in run.of_kind("data").items()}
        self.heads = dict(self._heads())
        self.seen: dict[str, tuple[LabelSpace, set[int]]] = {}
        self._opened: dict[str, LabelShard] = {}
        self._places: dict[str, dict[str, tuple[ImageShard, int]]] = {}

    def _heads(self) -> Iterator[tuple[str, SampleHead]]:
        kept = self.run.kept()
        for name, about in self.run.teachers().items():
            label = tasks.label(about.space)
            threshold = kept.get(name, {}).get("threshold", label.default_threshold)
            yield name, SampleHead(name, label, threshold, about.data, name in kept or not kept)

    @functools.cached_property
    def rejected(self) -> dict[tuple[str, str, str], frozenset[int]]:
        """Rows of image shards whose labels were rejected by hand, by (set, shard, teacher)."""
        return rejected_rows(self.run.artifacts)

    def stored(self, file: StoredFile, head: SampleHead, row: int, threshold: float) -> Value | None:
        """The label in a row of a label shard, None if there is none."""
        if file.sha256 not in self._opened:
            self._opened[file.sha256] = LabelShard(file, head.label)
        return self._opened[file.sha256].value(row, threshold)

    def truth(self, head: SampleHead, spot: Spot) -> Value | None:
        """The true label of an image for a head, None if its set has none."""
        if not self.has_truth(head, spot.dataset):
            return None
        file = self.sets[spot.dataset].true_labels(head.label.task, spot.split, spot.shard.name)
        return self.stored(file, head, spot.row, 0.0)

    def same(self, spot: Spot, dataset: str) -> Spot | None:
        """The image as a training image of another set, None if it is not in there."""
        if dataset == spot.dataset:
            return spot
        if dataset not in self._places:
            shards = self.sets[dataset].images("train").shards
            self._places[dataset] = {key: (shard, row) for shard in shards for row, key in enumerate(shard.keys)}
        found = self._places[dataset].get(spot.about.key)
        return Spot(dataset, "train", *found) if found else None

    def has_truth(self, head: SampleHead, dataset: str) -> bool:
        """Whether a set has true labels that mean the same as the head's."""
        return self.sets[dataset].spaces.get(head.label.task) == head.label.space

    def picture(self, image: Image.Image, head: SampleHead, value: Value | None, words: tuple[str, str]) -> Picture:
        """A thumbnail with a label on it; `words` are its title and note. Without a label the image is pale."""
        title, note = words
        if value is None:
            return Picture(Image.blend(image, Image.new("RGB", image.size, "grey"), 0.7), title, "no label")
        if head.label.task == "segmentation":
            space, numbers = head.label.space, np.unique(value["classes"])
            _, seen = self.seen.setdefault(head.name, (space, set()))
            seen.update(int(number) for number in numbers if number < len(space.classes))
        return labelled(image, head.label, value, title, note)


def pool_strips(album: Album) -> Iterator[list[Picture]]:
    """For some images of the pool, the image and what every head learned from it."""
    heads = [head for head in album.heads.values() if head.is_learned]
    if "pool" not in album.run.artifacts or not heads:
        return
    index = label_index(album.run)
    rows = max(3, min(8, MOST_PICTURES // (len(heads) + 1)))
    for spot in pool_spots(album, rows):
        image = thumbnail(spot.open())
        pictures = [Picture(image, spot.about.source, spot.dataset)]
        for head in heads:
            value, origin = learned(album, head, spot, index)
            picture = album.picture(image, head, value, (head.name, f"{head.label.task}, {origin}"))
            pictures.append(dataclasses.replace(picture, note=REJECTED) if origin == REJECTED else picture)
        yield pictures


def label_index(run: RunRecord) -> dict[tuple[str, str, str], StoredFile]:
    """The label shards of the run by (set, shard, teacher)."""
    made = run.artifacts.get("label")
    if made is None:
        return {}
    entries = made.load("labels.json", read_json)
    return {(entry["set"], entry["shard"], entry["teacher"]): made.external_file(entry["path"]) for entry in entries}


def pool_spots(album: Album, count: int) -> list[Spot]:
    """`count` images of the pool, from its sets in turn, in each by the hash of the bytes (their key)."""
    table = read_pool(album.run.artifacts["pool"])
    shards: dict[tuple[str, str], ImageShard] = {}
    by_set = []
    for name in pc.unique(table["set"]).to_pylist():
        first = table.filter(pc.equal(table["set"], name)).sort_by("key").slice(0, count)
        shards |= {(name, shard.name): shard for shard in album.sets[name].images("train").shards}
        by_set.append([Spot(name, "train", shards[name, row["shard"]], row["row"]) for row in first.to_pylist()])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_set))
    return list(itertools.islice((spot for spot in turns if spot), count))


def learned(
    album: Album, head: SampleHead, spot: Spot, index: dict[tuple[str, str, str], StoredFile]
) -> tuple[Value | None, str]:
    """The label that the student learned from, and whether it is true or pseudo, or why there is none."""
    settings = album.run.artifacts["student"].manifest["config"]["student"] if "student" in album.run.artifacts else {}
    labels = settings.get("labels", "true_first")
    if labels != "pseudo_only":
        for name in [*settings.get("truths", {}).get(head.name, ()), head.home]:
            there = album.same(spot, name) if name in album.sets else None
            value = album.truth(head, there) if there else None
            if value is not None:
                return value, "true label" if name == head.home else f"true label in {name}"
    place = (spot.dataset, spot.shard.name, head.name)
    file = index.get(place)
    if labels == "true_only" or file is None:
        return None, "no label"
    if spot.row in album.rejected.get(place, ()):
        return None, REJECTED
    limit = f" ≥ {head.threshold:g}" if head.threshold else ""
    return album.stored(file, head, spot.row, head.threshold), f"pseudo label{limit}"
