"""Score a predictor against true labels: the one way in which models are measured on a dataset."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import ImageDataset
from pipeline.data.loader import stack_images
from pipeline.data.prefetch import prefetch
from pipeline.errors import DataError
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import Value
from tasks.prediction import Predictor, check_finite_label
from tasks.task import Metric, Task

BATCH = 16
BATCHES_AHEAD = 2
"""Batches per thread that are decoded in advance."""


def predict_all(
    predictor: Predictor, dataset: ImageDataset, runtime: Runtime
) -> Iterator[tuple[int, dict[str, Value]]]:
    """Yield (index, labels by head) of every image of the dataset, in order. Threads decode in advance.

    Images are decoded as for labelling, so that a teacher is measured on what it labels. Raises Stopped after a stop
    signal, and DataError, naming head and image, for a prediction that is not finite: it has no score.
    """
    with contextlib.closing(_prepared(predictor, dataset, runtime)) as prepared:
        for rows, inputs in prepared:
            sizes = [dataset.size(row) for row in rows]
            predictions = predictor.predict(inputs, sizes)
            for offset, row in enumerate(rows):
                values = predictor.values(predictions, offset, sizes[offset])
                _check_scorable(values, dataset, row)
                yield row, values


def embed_all(predictor: Predictor, dataset: ImageDataset, runtime: Runtime) -> NDArray[np.float32] | None:
    """Return the vectors (N, D) of all images of a dataset, in order, decoded as `predict_all` does; None if the model
    tells none. Raises Stopped after a stop signal.
    """
    with contextlib.closing(_prepared(predictor, dataset, runtime)) as prepared:
        vectors = [predictor.embed(inputs) for _, inputs in prepared]
    found = [each for each in vectors if each is not None]
    return np.concatenate(found) if found else None


def _prepared(predictor: Predictor, dataset: ImageDataset, runtime: Runtime) -> Generator[tuple[range, Tensor]]:
    """Yield the indices and the preprocessed images (B, C, S, S), of batches of a dataset, in order."""
    preprocess = predictor.preprocessing

    def load(rows: range) -> tuple[range, Tensor]:
        return rows, stack_images([load_image(row) for row in rows])

    def load_image(row: int) -> NDArray[Any]:
        size = dataset.size(row)
        return preprocess(preprocess.decode(dataset.read(row)[1], size), size)

    count, threads = len(dataset), runtime.threads
    batches = (range(start, min(start + BATCH, count)) for start in range(0, count, BATCH))
    with contextlib.closing(prefetch(load, batches, threads, BATCHES_AHEAD * threads)) as prepared:
        for loaded in prepared:
            runtime.check_stop("scoring")
            yield loaded


def _check_scorable(values: Mapping[str, Value], dataset: ImageDataset, row: int) -> None:
    for head, value in values.items():
        try:
            check_finite_label(value)
        except DataError as error:
            raise DataError(f"{head} can't be scored on image {dataset.read(row)[0]}: {error}.") from error


class Accumulator(Protocol):
    """Takes predicted and true labels, image by image: a metric, or a calibrator."""

    def update(self, predicted: Value, true: Value) -> None: ...


def update_metrics(
    predictor: Predictor,
    dataset: ImageDataset,
    head: str,
    accumulators: Sequence[Accumulator],
    runtime: Runtime,
) -> None:
    """Show each labelled image's predicted and true label of a head to the accumulators."""
    for index, values in predict_all(predictor, dataset, runtime):
        true = dataset.values(index).get(head)
        if true is not None:
            for accumulator in accumulators:
                accumulator.update(values[head], true)


def measure_head(predictor: Predictor, dataset: ImageDataset, head: str, runtime: Runtime) -> Metric:
    """Return the metric of a head, against the dataset's labels of that name."""
    metric = predictor.heads[head].metrics()
    update_metrics(predictor, dataset, head, [metric], runtime)
    return metric


def score(predictor: Predictor, dataset: ImageDataset, head: str, runtime: Runtime) -> dict[str, float]:
    """Return the metrics of a head, against the dataset's labels of that name; {} if they define none."""
    return measure_head(predictor, dataset, head, runtime).compute()


def measure_constant(task: Task, head: str, train: ImageDataset, dataset: ImageDataset) -> Metric:
    """Return the metric of the trivial baseline: the constant label that suits the labels of `train` best."""
    guess = task.constant_label(train.values(index)[head] for index in range(len(train)))
    metric = task.metrics()
    for index in range(len(dataset)):
        metric.update(guess, dataset.values(index)[head])
    return metric


def is_measurable(task: Task, values: Iterable[Value | None]) -> bool:
    """Return True if true labels define the task's metrics, whatever is predicted; images without a label are None.

    They are measured against themselves, after 1, 2, 4, ... images: most sets are known to be measurable by the first,
    and no more of `values` is asked for then.
    """
    metric, due = task.metrics(), 1
    for count, true in enumerate(values, 1):
        if true is not None:
            metric.update(true, true)
        if count == due:
            if metric.compute():
                return True
            due *= 2
    return bool(metric.compute())


UNDEFINED = {
    "multilabel": "for no class is one image known to show it and another not to",
    "detection": "no image has a box",
    "masks": "no image has an object",
    "keypoints": "no image has an object with a labelled point",
}


def undefined_reason(task: str) -> str:
    """Return why labels of a task define no metric."""
    return UNDEFINED.get(task, "nothing is known in any label")
