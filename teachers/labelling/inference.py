"""Read, decode, infer, encode: the stages of labelling, overlapped with bounded work in flight.

On a CPU the cores do everything, so each worker thread takes a batch through all stages with one compute thread: no
two stages wait for each other and none competes for a core. With a GPU, inference is driven by the calling thread
while worker threads decode ahead of it and encode behind it. Either way the work flows on from shard to shard: no
core waits for the last batch of one before the next begins.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.decode import decode
from pipeline.data.prefetch import prefetch
from pipeline.errors import DataError
from pipeline.steps.runtime import Runtime
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import Label, Row
from pipeline.training.autotune import find_device, single_threaded
from tasks.prediction import Predictor, Preprocessing
from tasks.task import Prediction

SHARE = 1 / 4
"""Of the cache, if the images are elsewhere: shards this large are fetched whole, as all of their images are read."""


@dataclasses.dataclass
class ShardRows:
    """Rows of an image shard on their way: what each stage adds to them."""

    rows: range
    keys: list[str]
    sizes: list[tuple[int, int]]
    """(width, height) of the upright images, pixels."""
    reasons: dict[int, str] = dataclasses.field(default_factory=dict)
    """Why positions of the batch can't be labelled."""
    inputs: dict[Preprocessing, NDArray[np.uint8]] = dataclasses.field(default_factory=dict)
    """(B, S, S, 3) per preparation; black where the image can't be used."""
    predictions: dict[str, dict[str, Prediction]] = dataclasses.field(default_factory=dict)
    """By teacher and head."""
    labels: dict[str, list[Row | None]] = dataclasses.field(default_factory=dict)
    """By head."""


@dataclasses.dataclass(frozen=True)
class ShardInference:
    """The work on one image shard: which teachers, and by head how its labels are encoded."""

    shard: ImageShard
    predictors: Mapping[str, Predictor]
    labels: Mapping[str, Label]

    @functools.cached_property
    def _facts(self) -> list[tuple[int, int, str]]:
        columns = (self.shard.table.column(name).to_pylist() for name in ("width", "height", "suffix"))
        return list(zip(*columns, strict=True))

    def spans(self, size: int) -> list[range]:
        """The shard's rows in batches of `size`."""
        count = len(self.shard)
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def begin(self, rows: range) -> ShardRows:
        """An empty batch."""
        facts = (self._facts[row] for row in rows)
        return ShardRows(rows, [self.shard.keys[row] for row in rows], [(width, height) for width, height, _ in facts])

    def read(self, rows: range) -> list[bytes]:
        """The images' bytes. DataError if the store can't be read: that is no image's fault, and may pass."""
        self.shard.download(SHARE)
        return [self.shard.read(row) for row in rows]

    def decode(self, batch: ShardRows, data: Sequence[bytes]) -> None:
        """Decode once and prepare once per distinct preparation; what fails is noted and left black."""
        ways = {predictor.preprocessing for predictor in self.predictors.values()}
        batch.inputs = {way: np.zeros((len(batch.rows), way.size, way.size, 3), np.uint8) for way in ways}
        for position, (row, one) in enumerate(zip(batch.rows, data, strict=True)):
            try:
                for way, image in self._pictures(row, one, ways):
                    batch.inputs[way][position] = way(image)
            except DataError as error:
                batch.reasons[position] = str(error)

    def _pictures(self, row: int, data: bytes, ways: set[Preprocessing]) -> Iterator[tuple[Preprocessing, Image.Image]]:
        """The decoded image for every preparation, decoded once for all that want it equally large.

        Which size a preparation gets is its own affair: a label must not depend on which other teachers are at work.
        """
        pictures: dict[int, Image.Image] = {}
        for way in ways:
            shrink = _reduction(self._facts[row], way.min_decode_size())
            if shrink not in pictures:
                pictures[shrink] = decode(data, at_least=way.min_decode_size())
            yield way, pictures[shrink]

    def infer(self, batch: ShardRows, teacher: str) -> None:
        """Run one teacher on the batch."""
        predictor = self.predictors[teacher]
        images = torch.from_numpy(batch.inputs[predictor.preprocessing]).permute(0, 3, 1, 2)
        batch.predictions[teacher] = predictor.predict(images)

    def encode(self, batch: ShardRows, teacher: str) -> None:
        """One teacher's predictions to rows of its label stores; None where the image can't be used."""
        predictor, predictions = self.predictors[teacher], batch.predictions.pop(teacher)
        batch.labels |= {head: [None] * len(batch.rows) for head in predictions}
        for position, size in enumerate(batch.sizes):
            if position not in batch.reasons:
                for head, value in predictor.values(predictions, position, size).items():
                    batch.labels[head][position] = self.labels[head].encode(value)

    def start(self, rows: range) -> ShardRows:
        """What comes before the models."""
        batch = self.begin(rows)
        self.decode(batch, self.read(rows))
        return batch

    def run(self, batch: ShardRows) -> ShardRows:
        """The models."""
        for teacher in self.predictors:
            self.infer(batch, teacher)
        batch.inputs = {}
        return batch

    def finish(self, batch: ShardRows) -> ShardRows:
        """What comes after the models."""
        for teacher in self.predictors:
            self.encode(batch, teacher)
        return batch

    def whole(self, rows: range) -> ShardRows:
        """All stages, one after the other."""
        return self.finish(self.run(self.start(rows)))


def _reduction(facts: tuple[int, int, str], enough: tuple[int, int]) -> int:
    """By how much `pipeline.data.decode.decode` shrinks an image of these facts that has to be `enough` large."""
    width, height, suffix = facts
    most = min(width // enough[0], height // enough[1]) if suffix == "jpg" else 1
    return next(shrink for shrink in (8, 4, 2, 1) if shrink <= max(most, 1))


Span = tuple[ShardInference, range]


def label_batches(todo: Iterable[ShardInference], size: int, runtime: Runtime) -> Generator[ShardRows]:
    """Labelled batches of at most `size` images: all those of the first shard in order, then those of the next."""
    spans = ((stages, rows) for stages in todo for rows in stages.spans(size))
    if find_device(runtime.device) == "cpu":
        yield from _on_cpu(spans, runtime.threads)
        return
    pool = ThreadPoolExecutor(runtime.threads, thread_name_prefix="label")
    try:
        yield from _on_device(spans, pool, runtime.threads)
    finally:
        pool.shutdown(cancel_futures=True)  # of a consumer that leaves early, only what is in work is finished


def _on_cpu(spans: Iterator[Span], threads: int) -> Iterator[ShardRows]:
    """Whole batches side by side, one compute thread each; for each thread one batch in work and one that waits."""
    batches = prefetch(lambda span: span[0].whole(span[1]), spans, threads, 2 * threads)
    with single_threaded(), contextlib.closing(batches):
        yield from batches


def _on_device(spans: Iterator[Span], pool: ThreadPoolExecutor, threads: int) -> Iterator[ShardRows]:
    """Inference here; decoding ahead and encoding behind on the pool."""
    decoding: collections.deque[tuple[ShardInference, Future[ShardRows]]] = collections.deque()
    encoding: collections.deque[Future[ShardRows]] = collections.deque()

    def decode_next(count: int) -> None:
        for stages, rows in itertools.islice(spans, count):
            decoding.append((stages, pool.submit(stages.start, rows)))

    decode_next(threads)
    while decoding:
        stages, started = decoding.popleft()
        batch = started.result()
        decode_next(1)
        encoding.append(pool.submit(stages.finish, stages.run(batch)))
        if len(encoding) > threads:
            yield encoding.popleft().result()
    while encoding:
        yield encoding.popleft().result()
