"""Texture: regression of filter responses, the Gabor pretext task of Albuquerque et al. (arXiv 2003.13525)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.augment import ValidSizes
from pipeline.data.loader import WEIGHTS
from pipeline.stores.labels import Value
from tasks.task import ClassScore, DenseTask, Metric, Prediction, Target, masked_mean, resample, stack


class ExplainedVariance(Metric):
    """R squared, 1 - squared error / variance over all known cells of all images, averaged over filters with any.

    Its classes are the filters, their support the known cells.
    """

    def __init__(self, filters: int) -> None:
        self._error, self._sum, self._square, self._count = (np.zeros(filters, dtype=np.float64) for _ in range(4))

    def update(self, predicted: Value, true: Value) -> None:
        truth = true["responses"].astype(np.float64)
        guess = resample(predicted["responses"].astype(np.float64), truth)
        known = truth >= 0
        self._error += ((guess - truth) ** 2).sum(axis=(0, 1), where=known)
        self._sum += truth.sum(axis=(0, 1), where=known)
        self._square += (truth**2).sum(axis=(0, 1), where=known)
        self._count += known.sum(axis=(0, 1))

    def compute(self) -> dict[str, float]:
        known = self._count > 0
        return {"r2": float(self._shares()[known].mean())} if known.any() else {}

    def compute_by_class(self) -> dict[int, ClassScore]:
        shares = self._shares()
        return {
            int(index): ClassScore(int(self._count[index]), {"r2": float(shares[index])})
            for index in np.flatnonzero(self._count)
        }

    def _shares(self) -> NDArray[np.float64]:
        """Return the explained share of each filter's variance, (filters,)."""
        variance = self._square - self._sum**2 / np.maximum(self._count, 1)
        shares: NDArray[np.float64] = 1 - self._error / np.maximum(variance, 1e-12)
        return shares


class TaskModel(DenseTask):
    """Learn the responses of C filters; raw output: logits (B, C, S/4, S/4)."""

    better = {"r2": "higher"}  # noqa: RUF012 - a constant

    @property
    def channels(self) -> int:
        return len(self.space.classes)

    def collate(self, values: Sequence[Value], valid: ValidSizes = None) -> Target:
        return {"responses": stack(values, "responses").permute(0, 3, 1, 2)}

    def loss(self, output: Tensor, target: Target) -> Tensor:
        """Return the mean of |sigmoid(output) - response| over known cells and filters; L1 is our choice."""
        responses = target["responses"]
        return masked_mean((output.sigmoid() - responses).abs(), self.known(target), target.get(WEIGHTS))

    def known(self, target: Target) -> Tensor:
        known: Tensor = target["responses"] >= 0
        return known

    def predict(self, output: Tensor, valid: ValidSizes = None) -> Prediction:
        return {"responses": output.sigmoid().permute(0, 2, 3, 1)}

    def metrics(self) -> ExplainedVariance:
        return ExplainedVariance(len(self.space.classes))

    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return each filter's mean response, as a raster of one cell."""
        total, count = np.zeros((2, len(self.space.classes)), dtype=np.float64)
        for value in values:
            known = value["responses"] >= 0
            total += value["responses"].sum(axis=(0, 1), dtype=np.float64, where=known)
            count += known.sum(axis=(0, 1))
        return {"responses": (total / np.maximum(count, 1)).astype(np.float32).reshape(1, 1, -1)}


class FilterResponses(TaskModel):
    """The task for a raw output that is responses already, not logits: a filter bank's."""

    def predict(self, output: Tensor, valid: ValidSizes = None) -> Prediction:
        return {"responses": output.permute(0, 2, 3, 1)}
