"""Surface normals: cosine loss; mean and median angle, and the share of small angles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.augment import ValidSizes
from pipeline.data.loader import WEIGHTS
from pipeline.stores.labels import Value
from tasks.task import DenseTask, Metric, Prediction, Target, masked_mean, resample, stack

BINS = 18000
"""Bins of 0.01 degrees, from whose counts the median is computed: exact to 0.005 degrees in bounded memory."""


class AngularErrors(Metric):
    """Mean and median angle in degrees and the share below 11.25 degrees (Fouhey et al., ICCV 2013), over all known
    pixels of all images. A prediction of (0, 0, 0) is 90 degrees off.
    """

    def __init__(self) -> None:
        self._histogram = np.zeros(BINS, dtype=np.int64)
        self._sum = 0.0
        self._within = 0

    def update(self, predicted: Value, true: Value) -> None:
        truth = true["normals"].astype(np.float64)
        known = truth.any(axis=-1)
        guess = resample(predicted["normals"].astype(np.float64), truth)[known]
        cosine = (_unit(guess) * _unit(truth[known])).sum(axis=-1)
        angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        self._sum += float(angle.sum())
        self._within += int((angle < 11.25).sum())
        self._histogram += np.bincount(np.minimum((angle * 100).astype(np.int64), BINS - 1), minlength=BINS)

    def compute(self) -> dict[str, float]:
        count = int(self._histogram.sum())
        if not count:
            return {}
        middle = int(np.searchsorted(self._histogram.cumsum(), (count + 1) // 2))
        return {
            "mean_angle": self._sum / count,
            "median_angle": (middle + 0.5) / 100,
            "within_11.25": self._within / count,
        }


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normalize in float64: near 0 degrees, a length rounded to float32 would show as hundredths of a degree."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


class TaskModel(DenseTask):
    """Learn normals; raw output: vectors (B, 3, S/4, S/4) of which only the direction counts."""

    better = {"mean_angle": "lower", "median_angle": "lower", "within_11.25": "higher"}  # noqa: RUF012 - a constant

    @property
    def channels(self) -> int:
        return 3

    def collate(self, values: Sequence[Value], valid: ValidSizes = None) -> Target:
        return {"normals": stack(values, "normals").permute(0, 3, 1, 2)}

    def loss(self, output: Tensor, target: Target) -> Tensor:
        """Return the mean of 1 - cos(n', n) over known pixels. The choice is ours: MuST does not state its loss."""
        normals = target["normals"]
        return masked_mean(1 - F.cosine_similarity(output, normals, dim=1), self.known(target), target.get(WEIGHTS))

    def known(self, target: Target) -> Tensor:
        known: Tensor = target["normals"].any(dim=1)
        return known

    def predict(self, output: Tensor, valid: ValidSizes = None) -> Prediction:
        return {"normals": F.normalize(output, dim=1).permute(0, 2, 3, 1)}

    def metrics(self) -> AngularErrors:
        return AngularErrors()

    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return the mean direction, as a raster of one cell."""
        total = np.sum([value["normals"].sum(axis=(0, 1), dtype=np.float64) for value in values], axis=0)
        return {"normals": (total / max(np.linalg.norm(total), 1e-9)).astype(np.float32).reshape(1, 1, 3)}
