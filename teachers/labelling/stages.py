"""Read, decode, infer, encode: the stages of labelling, overlapped with bounded work in flight.

On a CPU the cores do everything, so each worker thread takes a batch through all stages with one compute thread: no
two stages wait for each other and none competes for a core. With a GPU, inference is driven by the calling thread
while worker threads decode ahead of it and encode behind it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.decode import decode
from pipeline.errors import DataError
from pipeline.images import ImageShard
from pipeline.labels import Label, Row
from pipeline.runtime import Runtime
from tasks.learning import Predictor, Preparation
from tasks.task import Prediction


@dataclasses.dataclass
class Batch:
    """Rows of an image shard on their way: what each stage adds to them."""

    rows: range
    keys: list[str]
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    reasons: dict[int, str] = dataclasses.field(default_factory=dict)
    """Why positions of the batch can't be labelled."""
    inputs: dict[Preparation, NDArray[np.uint8]] = dataclasses.field(default_factory=dict)
    predictions: dict[str, dict[str, Prediction]] = dataclasses.field(default_factory=dict)
    labels: dict[str, list[Row]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stages:
    """The work on one image shard: which teachers, and how each one's labels are encoded."""

    shard: ImageShard
    predictors: Mapping[str, Predictor]
    labels: Mapping[str, Label]

    def read(self, rows: range) -> list[bytes | DataError]:
        """The images' bytes."""
        return [self._read(row) for row in rows]

    def _read(self, row: int) -> bytes | DataError:
        try:
            return self.shard.read(row)
        except DataError as error:
            return error

    def decode(self, batch: Batch, data: list[bytes | DataError]) -> None:
        """Decode once and prepare once per distinct preparation; what fails is noted and left blank."""
        ways = {predictor.preparation for predictor in self.predictors.values()}
        enough = tuple(max(way.enough()[axis] for way in ways) for axis in (0, 1))
        prepared: dict[Preparation, list[NDArray[np.uint8]]] = {way: [] for way in ways}
        for position, (row, one) in enumerate(zip(batch.rows, data, strict=True)):
            image = self._decode(batch, position, one, (enough[0], enough[1]))
            batch.sizes.append(self._size(row))
            for way in ways:
                blank = np.zeros((way.size, way.size, 3), np.uint8)
                prepared[way].append(blank if image is None else way(image))
        batch.inputs = {way: np.stack(images) for way, images in prepared.items()}

    def _decode(
        self, batch: Batch, position: int, data: bytes | DataError, enough: tuple[int, int]
    ) -> Image.Image | None:
        try:
            if isinstance(data, DataError):
                raise data
            return decode(data, at_least=enough)
        except DataError as error:
            batch.reasons[position] = str(error)
            return None

    def _size(self, row: int) -> tuple[int, int]:
        facts = self.shard.row(row)
        return facts.width, facts.height

    def infer(self, batch: Batch) -> None:
        """Run every teacher on the batch."""
        for name, predictor in self.predictors.items():
            images = torch.from_numpy(batch.inputs[predictor.preparation]).permute(0, 3, 1, 2)
            batch.predictions[name] = predictor.predict(images)
        batch.inputs = {}

    def encode(self, batch: Batch) -> Batch:
        """Predictions to rows of the label stores."""
        for name, predictor in self.predictors.items():
            batch.labels[name] = [
                self.labels[name].encode(predictor.values(batch.predictions[name], position, size)[name])
                for position, size in enumerate(batch.sizes)
            ]
        batch.predictions = {}
        return batch

    def start(self, rows: range) -> Batch:
        """Read and decode."""
        batch = Batch(rows, [self.shard.keys[row] for row in rows])
        self.decode(batch, self.read(rows))
        return batch

    def whole(self, rows: range) -> Batch:
        """All stages, one after the other."""
        batch = self.start(rows)
        self.infer(batch)
        return self.encode(batch)


def label_batches(stages: Stages, size: int, runtime: Runtime) -> Iterator[Batch]:
    """Labelled batches of the shard, in order."""
    spans = [range(start, min(start + size, len(stages.shard))) for start in range(0, len(stages.shard), size)]
    on_cpu = all(predictor.choice.device == "cpu" for predictor in stages.predictors.values())
    with ThreadPoolExecutor(runtime.threads, thread_name_prefix="label") as pool:
        yield from (_on_cpu if on_cpu else _on_device)(stages, spans, pool, runtime.threads)


def _on_cpu(stages: Stages, spans: list[range], pool: ThreadPoolExecutor, threads: int) -> Iterator[Batch]:
    """Whole batches side by side, one compute thread each."""
    waiting: collections.deque[Future[Batch]] = collections.deque()
    with _one_thread_each(), _ended(waiting):
        for span in spans:
            waiting.append(pool.submit(stages.whole, span))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _on_device(stages: Stages, spans: list[range], pool: ThreadPoolExecutor, threads: int) -> Iterator[Batch]:
    """Inference here; decoding ahead and encoding behind on the pool."""
    decoding: collections.deque[Future[Batch]] = collections.deque()
    encoding: collections.deque[Future[Batch]] = collections.deque()
    with _ended(decoding), _ended(encoding):
        pending = iter(spans)
        for span in itertools.islice(pending, threads):
            decoding.append(pool.submit(stages.start, span))
        while decoding:
            batch = decoding.popleft().result()
            decoding.extend(pool.submit(stages.start, span) for span in itertools.islice(pending, 1))
            stages.infer(batch)
            encoding.append(pool.submit(stages.encode, batch))
            if len(encoding) > threads:
                yield encoding.popleft().result()
        while encoding:
            yield encoding.popleft().result()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _ended(futures: collections.deque[Future[Any]]) -> Iterator[None]:
    """Work not begun is dropped when the consumer leaves early."""
    try:
        yield
    finally:
        for future in futures:
            future.cancel()
