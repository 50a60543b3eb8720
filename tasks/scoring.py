"""Scoring predictions against true labels: the one way any model of this project is measured on a split."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.dataset import ImageDataset
from pipeline.data.decode import decode
from pipeline.data.prefetch import prefetch
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import Value
from tasks.prediction import Predictor

BATCH = 16
AHEAD = 2
"""Batches per thread that are made ready before they are asked for."""


def predict_all(
    predictor: Predictor, dataset: ImageDataset, runtime: Runtime
) -> Iterator[tuple[int, dict[str, Value]]]:
    """(position, labels by head) for every image of the library, in order, decoded ahead on threads.

    Raises Stopped if a stop was asked for.
    """

    def ready(rows: range) -> tuple[range, list[NDArray[np.uint8]], list[tuple[int, int]]]:
        images = [read_image(dataset, row) for row in rows]
        return rows, [predictor.preprocessing(image) for image in images], [image.size for image in images]

    count, threads = len(dataset), runtime.threads
    batches = (range(start, min(start + BATCH, count)) for start in range(0, count, BATCH))
    with contextlib.closing(prefetch(ready, batches, threads, AHEAD * threads)) as prepared:
        for rows, inputs, sizes in prepared:
            runtime.check_stop("scoring")
            predictions = predictor.predict(torch.from_numpy(np.stack(inputs)).permute(0, 3, 1, 2))
            for offset, size in enumerate(sizes):
                yield rows[offset], predictor.values(predictions, offset, size)


def read_image(dataset: ImageDataset, index: int) -> Image.Image:
    """The upright RGB image at a position of the library, at full size."""
    _, data = dataset.read(index)
    return decode(data)


def score(predictor: Predictor, dataset: ImageDataset, heads: Mapping[str, str], runtime: Runtime) -> dict[str, float]:
    """The metrics of one head on a library: `heads` maps the predictor's head to the library's, of one entry."""
    ((mine, theirs),) = heads.items()
    metric = predictor.heads[mine].metrics()
    for index, values in predict_all(predictor, dataset, runtime):
        truth = dataset.values(index).get(theirs)
        if truth is not None:
            metric.update(values[mine], truth)
    return metric.compute()
