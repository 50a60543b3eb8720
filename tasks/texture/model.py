"""Texture: regression of filter responses, the Gabor pretext of Albuquerque et al. (arXiv 2003.13525)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor, nn

from pipeline.labels import Value
from tasks.task import DenseHead, FeatureInfo, Prediction, Target, Task, masked_mean, resample, stack


class ExplainedVariance:
    """1 - squared error / variance, over all cells of all images, averaged over the filters (R squared)."""

    def __init__(self, filters: int) -> None:
        self._error, self._sum, self._square = (np.zeros(filters, dtype=np.float64) for _ in range(3))
        self._count = 0

    def update(self, predicted: Value, true: Value) -> None:
        truth = true["responses"].astype(np.float64)
        guess = resample(predicted["responses"].astype(np.float64), truth)
        self._error += ((guess - truth) ** 2).sum(axis=(0, 1))
        self._sum += truth.sum(axis=(0, 1))
        self._square += (truth**2).sum(axis=(0, 1))
        self._count += truth.shape[0] * truth.shape[1]

    def compute(self) -> dict[str, float]:
        spread = self._square - self._sum**2 / max(self._count, 1)
        return {"r2": float((1 - self._error / np.maximum(spread, 1e-12)).mean())}


class TaskModel(Task):
    better = {"r2": "higher"}  # noqa: RUF012 - a constant

    def head(self, features: FeatureInfo) -> nn.Module:
        return DenseHead(features, len(self.space.classes))

    def collate(self, values: Sequence[Value]) -> Target:
        return {"responses": stack(values, "responses").permute(0, 3, 1, 2)}

    def loss(self, output: Tensor, target: Target) -> Tensor:
        """L1 between responses in [0, 1]."""
        responses = target["responses"]
        return masked_mean((output.sigmoid() - responses).abs(), responses >= 0)

    def predict(self, output: Tensor) -> Prediction:
        return {"responses": output.sigmoid().permute(0, 2, 3, 1)}

    def value(self, prediction: Prediction, index: int, size: tuple[int, int]) -> Value:
        return {"responses": prediction["responses"][index]}

    def metrics(self) -> ExplainedVariance:
        return ExplainedVariance(len(self.space.classes))

    def constant(self, values: Iterable[Value]) -> Value:
        """Each filter's mean response, everywhere."""
        means = [value["responses"].mean(axis=(0, 1), dtype=np.float64) for value in values]
        return {"responses": np.mean(means, axis=0).astype(np.float32).reshape(1, 1, -1)}
