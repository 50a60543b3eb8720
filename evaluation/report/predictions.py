"""The pictures of a report: held-out images with what is true, what the teacher says, and what the student says."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from evaluation.metric_table import EvaluationTarget, leading, read_lines
from evaluation.report.figures import Picture
from evaluation.report.run_record import RunRecord
from evaluation.report.samples import MOST_PICTURES, Album, SampleHead, Spot
from pipeline.stores.labels import Value
from pipeline.training.device import single_threaded
from tasks.drawing import thumbnail
from tasks.network import Network
from tasks.prediction import Predictor, network_predictor
from tasks.teacher import open_teacher

PATIENCE_S = 6.0
"""Seconds after which no further teacher is asked."""


class CachedPredictor:
    """A model that is asked about images: as it was saved, on the processor, and once about each image.

    For a handful of images it is not worth finding out how this machine would run it fastest.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._said: dict[str, dict[str, Value]] = {}

    def predict(self, spots: Sequence[Spot]) -> list[dict[str, Value]]:
        """Labels by head for every image, whole: no threshold is applied, as when they are measured."""
        self._ask([spot for spot in spots if spot.about.key not in self._said])
        return [self._said[spot.about.key] for spot in spots]

    def _ask(self, spots: Sequence[Spot]) -> None:
        if not spots:
            return
        prepare = self.predictor.preprocessing
        images = np.stack([prepare(spot.open(prepare.min_decode_size())) for spot in spots])
        with single_threaded():  # a few small images gain little from more
            found = self.predictor.predict(torch.from_numpy(images).permute(0, 3, 1, 2))
        for number, spot in enumerate(spots):
            size = (spot.about.width, spot.about.height)
            self._said[spot.about.key] = self.predictor.values(found, number, size)


def student_of(run: RunRecord) -> CachedPredictor | None:
    """The student; None if the run has none."""
    made = run.artifacts.get("student")
    return CachedPredictor(network_predictor(made.load_all(Network.load))) if made else None


def teacher_of(run: RunRecord, name: str) -> CachedPredictor:
    """The teacher called `name`."""
    return CachedPredictor(open_teacher(run.artifacts[f"teacher.{name}"]))


def held_out_strips(album: Album) -> Iterator[tuple[EvaluationTarget, list[list[Picture]]]]:
    """For every measured place, strips of image, truth if there is one, teacher and student.

    A place that comes after PATIENCE_S has no strips.
    """
    deadline = time.monotonic() + PATIENCE_S
    lines, _ = read_lines(album.run.metrics())
    places = [line.place for line in leading(lines) if line.place.head in album.heads]
    images = max(1, min(4, MOST_PICTURES // (8 * max(len(places), 1)) * 2))  # even: two strips fit side by side
    student = student_of(album.run) if places else None
    for name, group in itertools.groupby(places, key=lambda place: place.head):
        if time.monotonic() > deadline:
            yield from ((place, []) for place in group)
            continue
        witnesses = {"teacher": teacher_of(album.run, name)}
        if student and name in student.predictor.heads:
            witnesses["student"] = student
        for place in group:
            yield place, list(_compared(album, place, witnesses, images))


def _compared(
    album: Album, place: EvaluationTarget, witnesses: Mapping[str, CachedPredictor], count: int
) -> Iterator[list[Picture]]:
    """Strips of the first `count` images of a place."""
    head = album.heads[place.head]
    spots = held_out_spots(album, head, place, count)
    said = {name: witness.predict(spots) for name, witness in witnesses.items()}
    for number, spot in enumerate(spots):
        image = thumbnail(spot.open())
        pictures = [Picture(image, spot.about.source)]
        if album.has_truth(head, place.dataset):
            pictures.append(album.picture(image, head, album.truth(head, spot), ("truth", "")))
        for name, values in said.items():
            value, note = readable(head, values[number][head.name])
            pictures.append(album.picture(image, head, value, (name, note)))
        yield pictures


def readable(head: SampleHead, value: Value) -> tuple[Value, str]:
    """A prediction as it can be looked at, and a note: of scored things those from the head's threshold on."""
    if "scores" not in value:
        return value, ""
    kept = head.label.decode(head.label.encode(value), head.threshold)
    note = f"score ≥ {head.threshold:g}"
    if value["scores"].any() and not kept["scores"].any():
        note += f", best {value['scores'].max():.2f}"
    return kept, note


def held_out_spots(album: Album, head: SampleHead, place: EvaluationTarget, count: int) -> list[Spot]:
    """The first `count` images of a split, by their keys, that have a true label for the head if the set has any."""
    shards = album.sets[place.dataset].images(place.split).shards
    keyed = sorted((key, number, row) for number, shard in enumerate(shards) for row, key in enumerate(shard.keys))
    spots = (Spot(place.dataset, place.split, shards[number], row) for _, number, row in keyed)
    if album.has_truth(head, place.dataset):
        spots = (spot for spot in spots if album.truth(head, spot) is not None)
    return list(itertools.islice(spots, count))
