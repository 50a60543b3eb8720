"""Regression of arrays: numbers in each cell, standardised by those that are learned; R squared, MAE and RMSE."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.augment import Placement, ValidSizes
from pipeline.data.loader import WEIGHTS
from pipeline.data.statistics import CONSTANT, deviations
from pipeline.errors import DataError
from pipeline.stores.labels import LabelSpace, Value
from pipeline.stores.rasters import DENSE_STRIDE, FULL_IMAGE, resample_nearest
from tasks.task import (
    ClassScore,
    DenseTask,
    FeatureInfo,
    Features,
    LinearHead,
    Metric,
    Prediction,
    Target,
    masked_mean,
    resample,
    stack,
)

GRID = 32
"""Cells of a side that a network predicts of an array that does not lie over the image; more are interpolated."""


class RegressionErrors(Metric):
    """R squared, MAE and RMSE of each channel over all known cells of all images, averaged over channels with any.

    R squared is 1 - squared error / variance: 0 of the constant that suits the truth best. Of a truth that does not
    vary it is 1 if nothing is wrong, else 0. MAE and RMSE are in the label's unit. The classes are the channels, their
    support the known cells.
    """

    def __init__(self, channels: int) -> None:
        self._count, self._sum, self._square, self._error, self._absolute = np.zeros((5, channels), dtype=np.float64)

    def update(self, predicted: Value, true: Value) -> None:
        truth = true["values"].astype(np.float64)
        known = ~np.isnan(truth)
        truth = np.where(known, truth, 0)
        error = np.where(known, resample(predicted["values"].astype(np.float64), truth) - truth, 0)
        self._count += known.sum(axis=(0, 1))
        self._sum += truth.sum(axis=(0, 1))
        self._square += (truth**2).sum(axis=(0, 1))
        self._error += (error**2).sum(axis=(0, 1))
        self._absolute += np.abs(error).sum(axis=(0, 1))

    def compute(self) -> dict[str, float]:
        scores = [score.values for score in self.compute_by_class().values()]
        return {name: float(np.mean([each[name] for each in scores])) for name in TaskModel.better} if scores else {}

    def compute_by_class(self) -> dict[int, ClassScore]:
        return {int(channel): self._of_channel(int(channel)) for channel in np.flatnonzero(self._count)}

    def _of_channel(self, channel: int) -> ClassScore:
        count, square, error = self._count[channel], self._square[channel], self._error[channel]
        variance = square - self._sum[channel] ** 2 / count
        r2 = 1 - error / variance if variance > CONSTANT * square else float(error == 0)
        errors = {"mae": float(self._absolute[channel] / count), "rmse": float(np.sqrt(error / count))}
        return ClassScore(int(count), {"r2": float(r2), **errors})


class TaskModel(DenseTask):
    """Learn K numbers in each cell; raw output (B, K, S/4, S/4): numbers less the label space's mean, in its deviation.

    A cell of an array that is not aligned is nothing to be seen at that place of the image. Such an array is predicted
    as a whole, from the vector of the image.
    """

    better = {"r2": "higher", "mae": "lower", "rmse": "lower"}  # noqa: RUF012 - a constant

    def __init__(self, space: LabelSpace) -> None:
        super().__init__(space)
        if not space.aligned:
            self.reads = "vector"

    @property
    def channels(self) -> int:
        return len(self.space.classes)

    def head(self, info: FeatureInfo) -> nn.Module:
        return super().head(info) if self.space.aligned else ArrayHead(info, self.channels)

    def collate(self, values: Sequence[Value], valid: ValidSizes = None) -> Target:
        return {"values": stack(values, "values").permute(0, 3, 1, 2)}

    def loss(self, output: Tensor, target: Target) -> Tensor:
        """Return the mean absolute error over known numbers, in deviations of each channel. L1 is our choice."""
        known = self.known(target)
        truth = self._standardize(target["values"].where(known, 0))
        return masked_mean((output - truth).abs(), known, target.get(WEIGHTS))

    def known(self, target: Target) -> Tensor:
        return ~target["values"].isnan()

    def predict(self, output: Tensor, valid: ValidSizes = None) -> Prediction:
        mean, std = self._statistics(output)
        return {"values": (output * std + mean).permute(0, 2, 3, 1)}

    def value(self, prediction: Prediction, index: int, placement: Placement) -> Value:
        if self.space.aligned:
            return super().value(prediction, index, placement)
        return {"values": prediction["values"][index]}

    def metrics(self) -> RegressionErrors:
        return RegressionErrors(self.channels)

    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return the mean of each channel, as a raster of one cell; the mean array of those that are not aligned."""
        side = 1 if self.space.aligned else GRID
        total, count = np.zeros((2, side, side, self.channels), dtype=np.float64)
        for value in values:
            array = value["values"]
            if not self.space.aligned:
                array = resample_nearest(array, FULL_IMAGE, (side, side), np.nan)
            known, axes = ~np.isnan(array), (0, 1) if self.space.aligned else ()
            total += array.sum(axis=axes, dtype=np.float64, where=known)
            count += known.sum(axis=axes)
        return {"values": (total / np.maximum(count, 1)).astype(np.float32)}

    def fit_space(self, values: Iterable[Value]) -> LabelSpace:
        """Return the label space with mean and standard deviation of each channel, over all known cells.

        Raises DataError if there is none.
        """
        count, total, square = np.zeros((3, self.channels), dtype=np.float64)
        for value in values:
            array = value["values"].astype(np.float64)
            known = ~np.isnan(array)
            count += known.sum(axis=(0, 1))
            total += array.sum(axis=(0, 1), where=known)
            square += (array**2).sum(axis=(0, 1), where=known)
        if not count.any():
            raise DataError(
                f"the training labels of {', '.join(self.space.classes)} have no known number: add arrays with some, "
                "or check what `unknown` states."
            )
        mean = total / np.maximum(count, 1)
        std = deviations(mean, square / np.maximum(count, 1))
        return dataclasses.replace(self.space, mean=tuple(mean.tolist()), std=tuple(std.tolist()))

    def _standardize(self, values: Tensor) -> Tensor:
        mean, std = self._statistics(values)
        return (values - mean) / std

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of the channels, (K, 1, 1), on the device of `like`."""
        space = self.space
        mean, std = space.mean or (0.0,) * self.channels, space.std or (1.0,) * self.channels
        made = (torch.tensor(each, dtype=torch.float32).view(-1, 1, 1) for each in (mean, std))
        one, other = (each.to(like.device, non_blocking=True) for each in made)
        return one, other


class ArrayHead(LinearHead):
    """A linear layer from the backbone's vector to an array of GRID x GRID cells, interpolated to S/4 x S/4."""

    def __init__(self, info: FeatureInfo, channels: int) -> None:
        side = info.image_size // DENSE_STRIDE
        super().__init__(info, channels * min(GRID, side) ** 2)
        self.grid, self.side = min(GRID, side), side

    def forward(self, features: Features) -> Tensor:  # type: ignore[override]
        """Return (B, K, S/4, S/4) float32."""
        cells = super().forward(features).unflatten(1, (-1, self.grid, self.grid))
        return F.interpolate(cells, (self.side, self.side), mode="bilinear")
