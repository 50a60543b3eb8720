"""Sample pictures of a report: held-out images with their true label and the predictions of teacher and student."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence

from evaluation.metric_table import EvaluationTarget, leading_lines, read_lines
from evaluation.report.figures import Picture
from evaluation.report.run_record import RunRecord
from evaluation.report.samples import MAX_PICTURES, RunSamples, SampleHead, StoredImage
from pipeline.data.loader import stack_images
from pipeline.stores.labels import Value
from pipeline.training.device import single_threaded
from tasks.drawing import thumbnail
from tasks.network import Network
from tasks.prediction import Predictor, network_predictor
from tasks.teacher import open_teacher

TIME_LIMIT_S = 6.0
"""Seconds after which no further teacher predicts."""


class CachedPredictor:
    """A saved model that predicts each image once, on the CPU.

    For a handful of images it is not worth finding out how this machine would run it fastest.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._predictions: dict[str, dict[str, Value]] = {}

    def predict(self, images: Sequence[StoredImage]) -> list[dict[str, Value]]:
        """Return labels by head for every image, without a threshold, as they are scored in the evaluation."""
        new = [image for image in images if image.metadata.key not in self._predictions]
        if new:
            preprocess = self.predictor.preprocessing
            sizes = [(image.metadata.width, image.metadata.height) for image in new]
            opened = [image.open(preprocess.min_decode_size(size)) for image, size in zip(new, sizes, strict=True)]
            batch = stack_images([preprocess(image, size) for image, size in zip(opened, sizes, strict=True)])
            with single_threaded():  # a few small images gain little from more threads
                predictions = self.predictor.predict(batch, sizes)
            for number, image in enumerate(new):
                self._predictions[image.metadata.key] = self.predictor.values(predictions, number, sizes[number])
        return [self._predictions[image.metadata.key] for image in images]


def teacher_predictor(run: RunRecord, name: str) -> CachedPredictor:
    """Open the teacher called `name`."""
    return CachedPredictor(open_teacher(run.artifacts[f"teacher.{name}"]))


def held_out_strips(samples: RunSamples) -> Iterator[tuple[EvaluationTarget, list[list[Picture]]]]:
    """Yield for every evaluation target strips of image, true label if it has one, teacher and student.

    A target whose turn comes after TIME_LIMIT_S has no strips.
    """
    deadline = time.monotonic() + TIME_LIMIT_S
    lines, _ = read_lines(samples.run.metrics())
    targets = [line.target for line in leading_lines(lines) if line.target.head in samples.heads]
    images = max(1, min(4, MAX_PICTURES // (8 * max(len(targets), 1)) * 2))  # even: two strips fit side by side
    made = samples.run.student if targets else None
    student = CachedPredictor(network_predictor(made.load_all(Network.load))) if made else None
    for name, group in itertools.groupby(targets, key=lambda target: target.head):
        if time.monotonic() > deadline:
            yield from ((target, []) for target in group)
            continue
        predictors = {"teacher": teacher_predictor(samples.run, name)}
        if student and name in student.predictor.heads:
            predictors["student"] = student
        for target in group:
            yield target, list(_strips(samples, target, predictors, images))


def _strips(
    samples: RunSamples, target: EvaluationTarget, predictors: Mapping[str, CachedPredictor], count: int
) -> Iterator[list[Picture]]:
    """Yield strips of the first `count` images of a target."""
    head = samples.heads[target.head]
    images = held_out_images(samples, head, target, count)
    predictions = {name: predictor.predict(images) for name, predictor in predictors.items()}
    for number, stored in enumerate(images):
        image = thumbnail(stored.open())
        pictures = [Picture(image, stored.metadata.source)]
        if samples.has_true_labels(head, target.dataset):
            pictures.append(samples.draw(image, head.uncalibrated(), samples.true_label(head, stored), "truth"))
        for name, values in predictions.items():
            drawn_as = head if name == "teacher" else head.uncalibrated()
            value, note = apply_threshold(drawn_as, values[number][head.teacher])
            pictures.append(samples.draw(image, drawn_as, value, name, note))
        yield pictures


def apply_threshold(head: SampleHead, value: Value) -> tuple[Value, str]:
    """Return a prediction without boxes below the head's threshold, and a note on it; other labels stay whole."""
    if "scores" not in value:
        return value, ""
    kept = head.label.decode(head.label.encode(value), head.threshold)
    note = head.least
    if value["scores"].any() and not kept["scores"].any():
        note += f", best {head.label.calibrate(value['scores']).max():.2f}"
    return kept, note


def held_out_images(samples: RunSamples, head: SampleHead, target: EvaluationTarget, count: int) -> list[StoredImage]:
    """Return the first `count` images of a split, by their keys; only ones with a true label if the set has any."""
    ingested = samples.sets[target.dataset]
    shards, channels = ingested.images(target.split).shards, ingested.channels
    keyed = sorted((key, number, row) for number, shard in enumerate(shards) for row, key in enumerate(shard.keys))
    images = (StoredImage(target.dataset, target.split, shards[number], row, channels) for _, number, row in keyed)
    if samples.has_true_labels(head, target.dataset):
        images = (image for image in images if samples.true_label(head, image) is not None)
    return list(itertools.islice(images, count))
