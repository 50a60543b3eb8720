"""Depth: regression of log metres, or of relative inverse depth; delta < 1.25, AbsRel and RMSE."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.data.augment import ValidSizes
from pipeline.data.loader import WEIGHTS
from pipeline.stores.labels import Value
from tasks.depth.label import align
from tasks.task import DenseTask, Metric, Prediction, Target, cells, masked_mean, resample, stack

LOG_RANGE = (-7.0, 9.0)
"""Natural logarithms of about 1 mm and 8 km, to which outputs are clamped, so that `exp` stays finite."""


class DepthErrors(Metric):
    """delta < 1.25, AbsRel and RMSE (Eigen et al., NIPS 2014) over all known pixels of all images.

    RMSE is in metres. Relative depth is first aligned to the true inverse depth, image by image, by the least-squares
    scale and shift; its RMSE has the truth's unit.
    """

    def __init__(self, relative: bool) -> None:
        self._relative = relative
        self._sums = np.zeros(3, dtype=np.float64)
        self._count = 0

    def update(self, predicted: Value, true: Value) -> None:
        truth = true["depth"].astype(np.float64)
        known = truth > 0
        guess = resample(predicted["depth"].astype(np.float64), truth)
        if self._relative:
            guess = align(guess, truth, known)
        truth, guess = truth[known], np.maximum(guess[known], 1e-6)
        accurate = np.maximum(guess / truth, truth / guess) < 1.25
        self._sums += [accurate.sum(), (np.abs(guess - truth) / truth).sum(), ((guess - truth) ** 2).sum()]
        self._count += truth.size

    def compute(self) -> dict[str, float]:
        if not self._count:
            return {}
        delta, relative, squared = self._sums / self._count
        return {"delta_1.25": float(delta), "abs_rel": float(relative), "rmse": float(np.sqrt(squared))}


class TaskModel(DenseTask):
    """Learn depth; raw output (B, 1, S/4, S/4): log metres, or relative inverse depth of any scale and shift."""

    better = {"delta_1.25": "higher", "abs_rel": "lower", "rmse": "lower"}  # noqa: RUF012 - a constant

    @property
    def _relative(self) -> bool:
        return self.space.scale == "relative"

    @property
    def channels(self) -> int:
        return 1

    def collate(self, values: Sequence[Value], valid: ValidSizes = None) -> Target:
        return {"depth": stack(values, "depth")}

    def loss(self, output: Tensor, target: Target) -> Tensor:
        """Return a mean over known pixels. The choice is ours: MuST does not state its depth loss.

        Metric: |log d' - log d|, an L1 loss under which an error counts by its ratio, as in delta and AbsRel.
        Relative: |n(d') - n(d)|, where n subtracts the median over known pixels and divides by their mean absolute
        deviation from it: the scale- and shift-invariant loss of MiDaS (Ranftl et al., TPAMI 2022, eq. 5-7).
        """
        depth, known, weights = target["depth"], self.known(target), target.get(WEIGHTS)
        if self._relative:
            return masked_mean((_standardize(output[:, 0], known) - _standardize(depth, known)).abs(), known, weights)
        log_depth = depth.clamp(min=1e-3).log()
        return masked_mean((output[:, 0].clamp(*LOG_RANGE) - log_depth).abs(), known, weights)

    def known(self, target: Target) -> Tensor:
        known: Tensor = target["depth"] > 0
        return known

    def predict(self, output: Tensor, valid: ValidSizes = None) -> Prediction:
        raw = output[:, 0]
        return {"depth": _stretch(raw, valid) if self._relative else raw.clamp(*LOG_RANGE).exp()}

    def metrics(self) -> DepthErrors:
        return DepthErrors(self._relative)

    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return the median of the images' median depths, as a raster of one cell."""
        medians = [np.median(value["depth"][value["depth"] > 0]) for value in values if (value["depth"] > 0).any()]
        return {"depth": np.full((1, 1), np.median(medians) if medians else 1.0, dtype=np.float32)}


def _stretch(maps: Tensor, valid: ValidSizes) -> Tensor:
    """Rescale the valid region of each map (h, w) of the batch to [0.01, 1].

    Training leaves scale and shift open, so raw numbers may be negative; and 0 would mean unknown.
    """
    lowest = highest = maps
    if valid is not None:
        padding = torch.ones(maps.shape, dtype=torch.bool)
        for image, (width, height) in zip(padding, valid, strict=True):
            image[: cells(height), : cells(width)] = False
        padding = padding.to(maps.device)
        lowest, highest = maps.masked_fill(padding, torch.inf), maps.masked_fill(padding, -torch.inf)
    low, high = lowest.amin(dim=(1, 2), keepdim=True), highest.amax(dim=(1, 2), keepdim=True)
    return 0.01 + 0.99 * (maps - low) / (high - low).clamp(min=1e-6)


def _standardize(maps: Tensor, known: Tensor) -> Tensor:
    """Subtract from each map (h, w) its median, and divide by its mean absolute deviation; both over known pixels."""
    flat = maps.masked_fill(~known, torch.nan).flatten(1)
    median = flat.nanmedian(dim=1, keepdim=True).values.nan_to_num()
    centered = maps - median[:, :, None]
    spread = (centered.abs() * known).sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp(min=1)
    return centered / spread.clamp(min=1e-6)[:, None, None]
