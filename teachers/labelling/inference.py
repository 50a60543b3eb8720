"""Inference on image shards in four phases, read, decode, infer and encode, overlapped with bounded work in flight.

Batches of the next shard begin before the last ones of a shard are done.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from pipeline.data.bands import Pixels
from pipeline.errors import DataError
from pipeline.steps.runtime import Runtime
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import APPLICABILITY, Label, Row
from tasks.applicability import Applicability
from tasks.inference.phases import overlap_phases
from tasks.prediction import Predictor, Preprocessing, StartedPrediction, check_finite_label

CACHE_SHARE = 1 / 4
"""A remote shard of at most this share of the cache is downloaded whole, as all of its images are read."""


@dataclasses.dataclass
class ShardRows:
    """A batch of an image shard's rows, to which each phase adds its results."""

    rows: range
    keys: list[str]
    sizes: list[tuple[int, int]]
    """(width, height) of the upright images in pixels."""
    reasons: dict[int, str] = dataclasses.field(default_factory=dict)
    """Reason by position in the batch, for images that can't be labelled."""
    inputs: dict[Preprocessing, Tensor] = dataclasses.field(default_factory=dict)
    """Inputs (B, S, S, C) by preprocessing; black for images that can't be labelled."""
    predictions: dict[str, StartedPrediction] = dataclasses.field(default_factory=dict)
    """Predictions by teacher."""
    labels: dict[str, list[Row | None]] = dataclasses.field(default_factory=dict)
    """Encoded labels by head; None for images that can't be labelled."""
    failures: dict[str, dict[int, str]] = dataclasses.field(default_factory=dict)
    """By head, reason by position in the batch, for images that this head gives no label."""

    def reason(self, head: str, position: int) -> str | None:
        """Return why an image has no label by this head, None if it has one."""
        return self.reasons.get(position) or self.failures[head].get(position)


@dataclasses.dataclass(frozen=True)
class ShardInference:
    """Inference of some teachers on one image shard: predictors by teacher, and how labels are encoded by head."""

    shard: ImageShard
    predictors: Mapping[str, Predictor]
    labels: Mapping[str, Label]
    applicability: Mapping[str, Applicability] = dataclasses.field(default_factory=dict)
    """By teacher, for those that can tell."""

    @functools.cached_property
    def _suffixes(self) -> list[str]:
        """File suffix of every image."""
        suffixes: list[str] = self.shard.table.column("suffix").to_pylist()
        return suffixes

    def batches(self, size: int) -> list[range]:
        """Split the shard's rows into batches of at most `size`."""
        count = len(self.shard)
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def new_batch(self, rows: range) -> ShardRows:
        """Return a batch that no phase has worked on."""
        sizes = [self.shard.sizes[row] for row in rows]
        return ShardRows(rows, [self.shard.keys[row] for row in rows], sizes)

    def read(self, rows: range) -> list[bytes]:
        """Read the images' bytes. Raises DataError if the store can't be read, for which no image is to blame."""
        self.shard.download(CACHE_SHARE)
        return [self.shard.read(row) for row in rows]

    def decode(self, batch: ShardRows, data: Sequence[bytes]) -> None:
        """Decode the images and preprocess them once for each distinct preprocessing; note those that fail."""
        distinct = {predictor.preprocessing for predictor in self.predictors.values()}
        batch.inputs = {each: self._new_inputs(len(batch.rows), each) for each in distinct}
        for position, (row, image_bytes) in enumerate(zip(batch.rows, data, strict=True)):
            # Decoded once for all that need the same reduction. Each preprocessing gets the one that it would get
            # alone: a label must not depend on which other teachers are at work.
            images: dict[int, Pixels] = {}
            try:
                for preprocess in distinct:
                    size = batch.sizes[position]
                    min_size = preprocess.min_decode_size(size)
                    reduction = _jpeg_reduction(self._suffixes[row], size, min_size)
                    if reduction not in images:
                        images[reduction] = preprocess.decode(image_bytes, size)
                    batch.inputs[preprocess].numpy()[position] = preprocess(images[reduction], size)
            except DataError as error:
                batch.reasons[position] = str(error)

    def _new_inputs(self, count: int, preprocess: Preprocessing) -> Tensor:
        """Return black inputs (count, S, S, C), in memory that a GPU copies from while the host goes on."""
        blank = torch.from_numpy(preprocess.blank(count))
        pinned = any(predictor.compute.device == "cuda" for predictor in self.predictors.values())
        return blank.pin_memory() if pinned else blank

    def infer(self, batch: ShardRows, teacher: str) -> None:
        """Start one teacher on the batch. What teachers share is uploaded once, if the device's memory holds it."""
        predictor = self.predictors[teacher]
        images = predictor.upload(batch.inputs[predictor.preprocessing])
        batch.inputs[predictor.preprocessing] = images
        batch.predictions[teacher] = predictor.start(
            images.permute(0, 3, 1, 2), batch.sizes, with_vectors=teacher in self.applicability
        )

    def encode(self, batch: ShardRows, teacher: str) -> None:
        """Encode one teacher's predictions as rows of its label stores; note those that are not finite."""
        predictor = self.predictors[teacher]
        predictions, vectors = batch.predictions.pop(teacher).read()
        known = None
        if teacher in self.applicability:
            assert vectors is not None, "applicability was fitted on the vectors of this model"
            known = self.applicability[teacher](vectors)
        batch.labels |= {head: [None] * len(batch.rows) for head in predictions}
        batch.failures |= {head: {} for head in predictions}
        for position, size in enumerate(batch.sizes):
            if position not in batch.reasons:
                for head, value in predictor.values(predictions, position, size).items():
                    try:
                        check_finite_label(value)
                        told = {} if known is None else {APPLICABILITY.name: float(known[position])}
                        batch.labels[head][position] = {**self.labels[head].encode(value), **told}
                    except DataError as error:
                        batch.failures[head][position] = str(error)

    def load(self, rows: range) -> ShardRows:
        """Read and decode a batch."""
        batch = self.new_batch(rows)
        self.decode(batch, self.read(rows))
        return batch

    def infer_all(self, batch: ShardRows) -> ShardRows:
        """Run all teachers on the batch."""
        for teacher in self.predictors:
            self.infer(batch, teacher)
        batch.inputs = {}
        return batch

    def encode_all(self, batch: ShardRows) -> ShardRows:
        """Encode all teachers' predictions."""
        for teacher in self.predictors:
            self.encode(batch, teacher)
        return batch

    def label(self, rows: range) -> ShardRows:
        """Run all phases on a batch."""
        return self.encode_all(self.infer_all(self.load(rows)))


def _jpeg_reduction(suffix: str, size: tuple[int, int], min_size: tuple[int, int]) -> int:
    """Return the factor by which `decode_image` shrinks an image that must be at least `min_size` = (width, height)."""
    largest = min(size[0] // min_size[0], size[1] // min_size[1]) if suffix == "jpg" else 1
    return next(reduction for reduction in (8, 4, 2, 1) if reduction <= max(largest, 1))


def label_batches(shards: Iterable[ShardInference], size: int, runtime: Runtime) -> Generator[ShardRows]:
    """Yield labelled batches of at most `size` images, in order: all of the first shard, then all of the next."""
    work = ((inference, rows) for inference in shards for rows in inference.batches(size))
    return overlap_phases(
        lambda item: (item[0], item[0].load(item[1])),
        lambda item: (item[0], item[0].infer_all(item[1])),
        lambda item: item[0].encode_all(item[1]),
        work,
        runtime,
    )
