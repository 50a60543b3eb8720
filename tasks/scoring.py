"""Scoring predictions against true labels: the one way any model of this project is measured on a split."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.decode import decode
from pipeline.labels import Value
from pipeline.loader import Library
from pipeline.runtime import Runtime
from tasks.learning import Predictor

BATCH = 16
AHEAD = 2
"""Batches per thread that are made ready before they are asked for."""
Ready = list[tuple[NDArray[np.uint8], tuple[int, int]]]
"""Per image of a batch, the model's input and the image's size."""


def predict_all(predictor: Predictor, library: Library, runtime: Runtime) -> Iterator[tuple[int, dict[str, Value]]]:
    """(position, labels by head) for every image of the library, in order, decoded ahead on threads.

    Raises Stopped if a stop was asked for.
    """
    starts = iter(range(0, len(library), BATCH))
    pool = ThreadPoolExecutor(runtime.threads, thread_name_prefix="score")

    def ready(start: int) -> Ready:
        return list(map(prepare, range(start, min(start + BATCH, len(library)))))

    def prepare(index: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        image = read_image(library, index)
        return predictor.preparation(image), image.size

    def submit(count: int) -> Iterator[tuple[int, Future[Ready]]]:
        return ((start, pool.submit(ready, start)) for start in itertools.islice(starts, count))

    try:
        waiting = collections.deque(submit(AHEAD * runtime.threads))
        while waiting:
            runtime.check_stop("scoring")
            start, future = waiting.popleft()
            inputs = future.result()
            waiting.extend(submit(1))
            images = torch.from_numpy(np.stack([image for image, _ in inputs])).permute(0, 3, 1, 2)
            predictions = predictor.predict(images)
            for offset, (_, size) in enumerate(inputs):
                yield start + offset, predictor.values(predictions, offset, size)
    finally:
        pool.shutdown(cancel_futures=True)


def read_image(library: Library, index: int) -> Image.Image:
    """The upright RGB image at a position of the library, at full size."""
    _, data = library.read(index)
    return decode(data)


def score(predictor: Predictor, library: Library, heads: Mapping[str, str], runtime: Runtime) -> dict[str, float]:
    """The metrics of one head on a library: `heads` maps the predictor's head to the library's, of one entry."""
    ((mine, theirs),) = heads.items()
    metric = predictor.heads[mine].metrics()
    for index, values in predict_all(predictor, library, runtime):
        truth = library.values(index).get(theirs)
        if truth is not None:
            metric.update(values[mine], truth)
    return metric.compute()
