"""Feature maps: learn what a published backbone makes of each part of an image (dense feature distillation)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.augment import Placement, ValidSizes
from pipeline.data.loader import WEIGHTS
from pipeline.models.readout import ReadoutBackbone
from pipeline.stores.labels import Value
from pipeline.stores.rasters import FULL_IMAGE, resample_linear
from tasks.components import ComponentNetwork, ComponentSimilarity, component_loss
from tasks.feature_maps.label import TaskLabel
from tasks.task import DenseTask, Prediction, Target, cells, per_image, stack

DRAWN = 16
"""Cells of a map that components are fitted to."""


class FeatureMapNetwork(ComponentNetwork):
    """A backbone and the principal components of the cells of its last map, of its own grid h x w.

    uint8 images (B, 3, S, S) -> {head: (B, K, h, w)}.
    """

    def __init__(self, backbone: ReadoutBackbone, head: str, count: int) -> None:
        super().__init__(backbone, head, backbone.channels[-1], count)

    def forward_with_vector(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the components of the cells, and the backbone's vectors (B, D)."""
        vectors, maps = self.readout(images)
        with torch.autocast(vectors.device.type, enabled=False):
            return {self.head: self.components(maps[-1].movedim(1, -1)).movedim(-1, 1)}, vectors

    def fitted_vectors(self, images: Tensor) -> Tensor:
        """Return cells that are drawn at random from each map, or all of a small one (B, n, D)."""
        of_images = self.readout(images).maps[-1].flatten(2).transpose(1, 2)
        seeds = images.sum(dim=(1, 2, 3), dtype=torch.int64).tolist()
        orders = [torch.randperm(of_images.shape[1], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        drawn = torch.stack(orders)[:, :DRAWN, None].to(images.device)
        return of_images.take_along_dim(drawn, dim=1)


class CellSimilarity(ComponentSimilarity):
    """`cosine` and `r2` over the known cells of all images; predictions are interpolated to the cells of the truth."""

    def update(self, predicted: Value, true: Value) -> None:
        truth = true["map"].astype(np.float64)
        guess = resample_linear(predicted["map"].astype(np.float64), FULL_IMAGE, (truth.shape[0], truth.shape[1]))
        self.add(guess.reshape(-1, guess.shape[-1]), truth.reshape(-1, truth.shape[-1]))


class TaskModel(DenseTask):
    """Learn the K principal components of the cells of a teacher's map; raw output: components (B, K, S/16, S/16)."""

    stride = TaskLabel.stride
    better = {"cosine": "higher", "r2": "higher"}  # noqa: RUF012 - a constant

    @property
    def channels(self) -> int:
        return len(self.space.classes)

    def collate(self, values: Sequence[Value], valid: ValidSizes = None) -> Target:
        return {"map": stack(values, "map").permute(0, 3, 1, 2)}

    def loss(self, output: Tensor, target: Target) -> Tensor:
        """Return the `component_loss` over known cells."""
        guess, truth = (maps.movedim(1, -1).flatten(0, 2) for maps in (output, target["map"]))
        known, weights = self.known(target), target.get(WEIGHTS)
        each = None if weights is None else per_image(weights, known).expand_as(known).flatten()
        return component_loss(guess, truth, known.flatten(), each)

    def live_target(self, output: Tensor, side: int, valid: Tensor | None = None) -> Target:
        """Interpolate the teacher's maps as a crop of stored ones is; in padding they are unknown."""
        maps = F.interpolate(output, (side // self.stride, side // self.stride), mode="bilinear")
        return {"map": maps if valid is None else maps * self.live_known(len(maps), side, valid)[:, None]}

    def live_known(self, images: int, side: int, valid: Tensor | None) -> Tensor:
        """Return which cells have their centers in the images' valid regions, bool (B, h, w)."""
        count = side // self.stride
        if valid is None:
            return torch.ones(images, count, count, dtype=torch.bool)
        centers = (torch.arange(count, device=valid.device) + 0.5) * self.stride
        columns, rows = (centers < sides[:, None] for sides in valid.unbind(dim=1))
        return rows[:, :, None] & columns[:, None, :]

    def known(self, target: Target) -> Tensor:
        known: Tensor = target["map"].any(dim=1)
        return known

    def predict(self, output: Tensor, valid: ValidSizes = None) -> Prediction:
        return {"map": output.permute(0, 2, 3, 1)}

    def value(self, prediction: Prediction, index: int, placement: Placement) -> Value:
        """Return the map over the valid region, which may end within cells."""
        components = prediction["map"][index]
        rows, columns = components.shape[:2]
        width, height = placement.valid
        box = (0.0, 0.0, min(width / (columns * self.stride), 1.0), min(height / (rows * self.stride), 1.0))
        size = min(cells(height, self.stride), rows), min(cells(width, self.stride), columns)
        return {"map": resample_linear(components, box, size)}

    def metrics(self) -> CellSimilarity:
        return CellSimilarity()

    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return the mean vector of all known cells, as a raster of one cell."""
        total, count = np.zeros(self.channels), 0
        for value in values:
            total += value["map"].sum(axis=(0, 1), dtype=np.float64)
            count += int(value["map"].any(axis=-1).sum())
        return {"map": (total / max(count, 1)).astype(np.float32).reshape(1, 1, -1)}


class BackboneMaps(TaskModel):
    """The task for the maps of a backbone itself, of any grid, whose images fill its input."""

    def value(self, prediction: Prediction, index: int, placement: Placement) -> Value:
        return {"map": prediction["map"][index]}
