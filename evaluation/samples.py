"""The pictures of a report: pool images with the labels learned from, held-out images with truth and predictions."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image

import tasks
from evaluation.results import Place, leading, read_lines
from evaluation.run_record import RunRecord
from pipeline.artifacts import read_json
from pipeline.decode import decode
from pipeline.images import ImageRow, ImageShard
from pipeline.labels import Label, LabelShard, LabelSpace, Value
from tasks.ingest import IngestedSet
from tasks.pictures import SIDE, Picture, labelled, thumbnail
from tasks.pool import FILE

if TYPE_CHECKING:
    from tasks.learning import Predictor

MOST_PICTURES = 72
"""Of the pool, and of the held-out images: what keeps the page below a few megabytes."""
PATIENCE_S = 8.0
"""Seconds after which no further teacher is asked for predictions."""


@dataclasses.dataclass(frozen=True)
class Head:
    """One head of the student: its labels, the threshold they are read with, the set with true labels for it."""

    name: str
    label: Label
    threshold: float
    home: str | None


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

    def open(self, enough: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
        """The upright image, of at least the size (width, height) `enough` unless it is smaller itself."""
        return decode(self.shard.read(self.row), at_least=enough)


class Album:
    """What pictures of a run are made from; remembers which classes were drawn, and what was left out."""

    def __init__(self, run: RunRecord) -> None:
        self.run = run
        self.sets = {name: IngestedSet(made) for name, made in run.of_kind("data").items()}
        self.heads = dict(self._heads())
        self.seen: dict[str, set[int]] = {}
        self.unshown: list[str] = []
        self._opened: dict[Path, LabelShard] = {}

    def _heads(self) -> Iterator[tuple[str, Head]]:
        kept, home = self.run.kept(), self.run.home()
        for name in (name for name in home if name in kept or not kept):
            space = LabelSpace.from_json(self.run.teacher(name)["space"])
            yield name, Head(name, tasks.label(space), kept.get(name, {}).get("threshold", 0.0), home[name])

    def stored(self, path: Path, head: Head, row: int, threshold: float) -> Value | None:
        """The label in a row of a label shard, None if there is none."""
        if path not in self._opened:
            self._opened[path] = LabelShard(path, head.label)
        return self._opened[path].value(row, threshold)

    def truth(self, head: Head, spot: Spot) -> Value | None:
        """The true label of an image for a head, None if its set has none."""
        found = self.sets[spot.dataset]
        if head.label.task not in found.spaces:
            return None
        return self.stored(found.truth(head.label.task, spot.split, spot.shard.name), head, spot.row, 0.0)

    def picture(self, image: Image.Image, head: Head, value: Value | None, words: tuple[str, str]) -> Picture:
        """A thumbnail with a label on it; `words` are its title and note. Without a label the image is pale."""
        title, note = words
        if value is None:
            return Picture(Image.blend(image, Image.new("RGB", image.size, "grey"), 0.7), title, "no label")
        if head.label.task == "segmentation":
            classes = np.unique(value["classes"])
            known = classes[classes < len(head.label.space.classes)]
            self.seen.setdefault(head.name, set()).update(int(number) for number in known)
        return labelled(image, head.label, value, title, note)


def pool_strips(album: Album) -> Iterator[list[Picture]]:
    """For some images of the pool, the image and what every head learned from it."""
    if "pool" not in album.run.artifacts or not album.heads:
        return
    index = label_index(album.run)
    rows = max(3, min(8, MOST_PICTURES // (len(album.heads) + 1)))
    for spot in pool_spots(album, rows):
        image = thumbnail(spot.open())
        pictures = [Picture(image, spot.about.source, spot.dataset)]
        for head in album.heads.values():
            value, origin = learned(album, head, spot, index)
            pictures.append(album.picture(image, head, value, (head.name, f"{head.label.task}, {origin}")))
        yield pictures


def label_index(run: RunRecord) -> dict[tuple[str, str, str], Path]:
    """The label shards of the run by (set, shard, teacher)."""
    made = run.artifacts.get("label")
    entries = read_json(made.path / "labels.json") if made else []
    return {(entry["set"], entry["shard"], entry["teacher"]): run.root / entry["path"] for entry in entries}


def pool_spots(album: Album, count: int) -> list[Spot]:
    """`count` images of the pool, from its sets in turn, in each by the hash of the bytes (their key)."""
    table = pq.read_table(album.run.artifacts["pool"].path / FILE, filters=[("used", "=", True)])
    shards: dict[tuple[str, str], ImageShard] = {}
    by_set = []
    for name in pc.unique(table["set"]).to_pylist():
        first = table.filter(pc.equal(table["set"], name)).sort_by("key").slice(0, count)
        shards |= {(name, shard.name): shard for shard in album.sets[name].images("train").shards}
        by_set.append([Spot(name, "train", shards[name, row["shard"]], row["row"]) for row in first.to_pylist()])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_set))
    return list(itertools.islice((spot for spot in turns if spot), count))


def learned(album: Album, head: Head, spot: Spot, index: dict[tuple[str, str, str], Path]) -> tuple[Value | None, str]:
    """The label that the student learned from, and whether it is true or pseudo."""
    settings = album.run.artifacts["student"].manifest["config"]["student"] if "student" in album.run.artifacts else {}
    labels = settings.get("labels", "true_first")
    if labels != "pseudo_only" and head.home == spot.dataset:
        value = album.truth(head, spot)
        if value is not None:
            return value, "true label"
    path = index.get((spot.dataset, spot.shard.name, head.name))
    if labels == "true_only" or path is None:
        return None, "no label"
    limit = f" ≥ {head.threshold:g}" if head.threshold else ""
    return album.stored(path, head, spot.row, head.threshold), f"pseudo label{limit}"


def held_out_strips(album: Album) -> Iterator[tuple[Place, list[list[Picture]]]]:
    """For every measured place, strips of image, truth, teacher and student; no more after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    lines, _ = read_lines(album.run.metrics())
    places = [line.place for line in leading(lines) if line.place.head in album.run.of_kind("teacher")]
    images = max(1, min(3, MOST_PICTURES // (4 * max(len(places), 1))))
    student = student_predictor(album.run) if places else None
    for name, group in itertools.groupby(places, key=lambda place: place.head):
        if time.monotonic() > deadline:
            album.unshown += [f"{place.head} on {place.dataset}" for place in group]
            continue
        models = {"teacher": teacher_predictor(album.run, name)}
        if student and name in student.heads:
            models["student"] = student
        for place in group:
            yield place, list(_compared(album, place, models, images))


def student_predictor(run: RunRecord) -> Predictor | None:
    """The student, to predict with; None if the run has none."""
    from tasks.learning import network_predictor  # noqa: PLC0415 - torch and timm, for the pictures only
    from tasks.network import Network  # noqa: PLC0415

    return network_predictor(Network.load(run.artifacts["student"].path)) if "student" in run.artifacts else None


def teacher_predictor(run: RunRecord, name: str) -> Predictor:
    """A teacher, to predict with."""
    teacher: Predictor = importlib.import_module(f"teachers.{run.teacher(name)['kind']}").load(
        run.artifacts[f"teacher.{name}"].path
    )
    return teacher


def _compared(album: Album, place: Place, models: dict[str, Predictor], count: int) -> Iterator[list[Picture]]:
    """Strips of the first `count` images of a place."""
    head = album.heads.get(place.head) or _unlearned(album, place.head)
    spots = labelled_spots(album, head, place, count)
    guesses = {model: predict(predictor, head, spots) for model, predictor in models.items()}
    for number, spot in enumerate(spots):
        image = thumbnail(spot.open())
        pictures = [Picture(image, "image", spot.about.source)]
        pictures.append(album.picture(image, head, album.truth(head, spot), ("truth", "")))
        for model, values in guesses.items():
            pictures.append(album.picture(image, head, values[number], (model, "")))
        yield pictures


def _unlearned(album: Album, name: str) -> Head:
    """The head of a teacher that the student did not learn from."""
    space = LabelSpace.from_json(album.run.teacher(name)["space"])
    return Head(name, tasks.label(space), 0.0, None)


def labelled_spots(album: Album, head: Head, place: Place, count: int) -> list[Spot]:
    """The first `count` images of a split, by their keys, that have a true label for the head."""
    shards = album.sets[place.dataset].images(place.split).shards
    keyed = sorted((key, number, row) for number, shard in enumerate(shards) for row, key in enumerate(shard.keys))
    spots = (Spot(place.dataset, place.split, shards[number], row) for _, number, row in keyed)
    return list(itertools.islice((spot for spot in spots if album.truth(head, spot) is not None), count))


def predict(predictor: Predictor, head: Head, spots: Sequence[Spot]) -> list[Value]:
    """A model's labels of images, with the head's threshold applied as to a stored label."""
    prepare = predictor.preparation
    images = np.stack([prepare(spot.open(prepare.enough())) for spot in spots])
    found = predictor.predict(torch.from_numpy(images).permute(0, 3, 1, 2))
    values = []
    for number, spot in enumerate(spots):
        value = predictor.values(found, number, (spot.about.width, spot.about.height))[head.name]
        values.append(head.label.decode(head.label.encode(value), head.threshold))
    return values
