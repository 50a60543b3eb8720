"""Base class of what a task's `model.py` holds, `Task`: head, loss, prediction, metric and trivial baseline.

Shapes here and in the tasks: B images of S x S pixels; a dense map is (B, ., S/4, S/4) unless its task says otherwise.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.augment import Placement, ValidSizes
from pipeline.stores.labels import LabelSpace, Value
from pipeline.stores.rasters import DENSE_STRIDE
from tasks.calibration import Examples

Target = dict[str, Any]
"""A batch's labels as tensors: what a task's `collate` returns and its `loss` reads."""
Prediction = dict[str, Any]
"""What a task's `predict` returns: tensors, or lists of tensors, with one entry per image."""
PYRAMID_STRIDES = (8, 16, 32, 64, 128)
"""Pixels of the input per cell of each pyramid level, P3 to P7."""


@dataclasses.dataclass(frozen=True)
class FeatureInfo:
    """Sizes that a head is built for."""

    vector_width: int
    """D, the length of `Features.vector`."""
    pyramid_channels: int
    """Channels of each pyramid level and of the fused map."""
    image_size: int
    """S, the side of the input in pixels."""
    proposals: int | None = None
    """Region proposals per image at test time; None for as many as suit the image size."""


@dataclasses.dataclass
class Features:
    """The output of the network's shared part for the heads: what they read, by `Task.reads`."""

    vector: Tensor | None
    """The backbone's vector (B, D), which stages, probes and exports read as well: see `pipeline.models.readout`."""
    pyramid: list[Tensor] = dataclasses.field(default_factory=list)
    """P3 to P7, each (B, W, S/stride, S/stride)."""
    fused: Tensor | None = None
    """The sum of all pyramid levels, resized to stride 4: (B, W, S/4, S/4)."""

    def select(self, rows: Tensor) -> Features:
        """Return the features of the images at these positions of the batch, int64 (N,)."""
        vector, fused = (None if maps is None else maps[rows] for maps in (self.vector, self.fused))
        return Features(vector, [level[rows] for level in self.pyramid], fused)


class ClassScore(NamedTuple):
    """Scores of one class."""

    support: int
    """Labels of the class in the truth: images, boxes or pixels."""
    values: Mapping[str, float]
    """By those metrics that are means over classes."""


class Metric(ABC):
    """Scores of predictions, accumulated image by image in float64: order and batching of the images change nothing.

    Example:
        metric = task.metrics()
        metric.update(predicted, true)  # once per image; then metric.compute() == {"accuracy": 1.0}
    """

    @abstractmethod
    def update(self, predicted: Value, true: Value) -> None:
        """Add an image: its predicted and its true label, in the arrays that the task's `TaskLabel` states.

        Unknown pixels of the truth are ignored. Where rasters (or images of boxes) differ in size, the truth's counts.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return all metrics over the images so far, with the keys of `Task.better`; {} if the truth defines none."""

    def compute_by_class(self) -> dict[int, ClassScore]:
        """Return the scores, by index, of the classes that metrics are means over; {} (the default) if none is."""
        return {}


class Task(ABC):
    """Learns, predicts and scores labels of one label space. Parameters are in the head, none in the task.

    Training calls `collate`, `known`, the head and `loss` on each batch; prediction calls the head and `predict` on
    each batch, then `value` on each image. A value is a dict of NumPy arrays, which the task's `TaskLabel` states.

    Example:
        task = tasks.model(LabelSpace("depth"))
        loss = task.loss(task.head(info)(features), task.collate(values))
    """

    reads: Literal["vector", "pyramid", "fused"] = "fused"
    """The field of `Features` that the head reads; no other one need be there, but `pyramid` beside `fused`."""
    better: ClassVar[dict[str, str]]
    """All metrics, the leading one first, each with the better direction: "higher" or "lower"."""

    label_smoothing: float = 0.0
    """Of losses that learn classes: the share of a label that is spread evenly over all of them (Szegedy et al., CVPR
    2016, section 7); where each class is a yes or no of its own, over these two."""

    def __init__(self, space: LabelSpace) -> None:
        self.space = space

    @abstractmethod
    def head(self, info: FeatureInfo) -> nn.Module:
        """Build the module from `Features` to raw output, whatever `loss` and `predict` take; dense: (B, K, S/4, S/4).

        Called once per network. The head returns float32, also under autocast.
        """

    @abstractmethod
    def collate(self, values: Sequence[Value], valid: ValidSizes = None) -> Target:
        """Stack the labels of the batch's labelled images into tensors, on the CPU.

        Labels arrive augmented and cropped to the view: rasters of `Label.target_side(S)` cells, boxes in pixels of
        S x S. What is outside of the images' `valid` regions is padding, where rasters are unknown.
        """

    @abstractmethod
    def loss(self, output: Any, target: Target) -> Tensor:
        """Return a float32 scalar: the mean over all that is known, or 0, with a graph, if nothing is.

        With WEIGHTS in the target the mean is weighted by image, if the task's label `can_be_weighted`.
        `output` is the head's on the images of `target`, in the same order.
        """

    def live_target(self, output: Any, side: int, valid: Tensor | None = None) -> Target:
        """Return the target that a teacher's raw output on a batch is, if its label `can_be_live`.

        The network that learns it takes images of `side` x `side` pixels. `valid`: as in `Batch`.
        """
        raise NotImplementedError(f"{self.space.task}: a teacher's output is no target")

    def live_known(self, images: int, side: int, valid: Tensor | None) -> Tensor:
        """Return what `known` says of a `live_target` of so many images; by default that all is known."""
        return torch.ones(images, dtype=torch.bool)

    @abstractmethod
    def known(self, target: Target) -> Tensor:
        """Return where the labels of the n images are known, bool (n, ...): what `loss` is the mean over.

        Thresholds and crops may leave an image of which nothing is.
        """

    @abstractmethod
    def predict(self, output: Any, valid: ValidSizes = None) -> Prediction:
        """Turn raw output into tensors on the same device, with one entry per image. Called in inference mode.

        What is said about padding, outside of the images' `valid` regions, is not used.
        """

    def value(self, prediction: Prediction, index: int, placement: Placement) -> Value:
        """Return the label of image `index`, which lies in the input as `placement` says.

        `prediction` is what `predict` returned, as NumPy arrays. Rasters keep their resolution and lose the padding,
        boxes are in pixels of the image.
        """
        return {name: array[index] for name, array in prediction.items()}

    @abstractmethod
    def metrics(self) -> Metric:
        """Return a new metric, with no image in it."""

    def scored_examples(self, predicted: Value, true: Value) -> Examples | None:
        """Return what an image tells of the scores: which are right. None if nothing, or (the default) without scores.

        A task that overrides this has the column `PROBABILITY` in its labels.
        """
        return None

    @abstractmethod
    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return the trivial baseline: the best label that ignores the image, computed from the training labels."""

    def fit_space(self, values: Iterable[Value]) -> LabelSpace:
        """Return the label space with what a network has to know of its training labels; by default nothing."""
        return self.space


class LinearHead(nn.Linear):
    """A linear layer on the backbone's vector: `Features` -> float32 logits (B, K), near 0 before training."""

    def __init__(self, info: FeatureInfo, outputs: int) -> None:
        super().__init__(info.vector_width, outputs)
        nn.init.zeros_(self.bias)
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, features: Features) -> Tensor:  # type: ignore[override]
        assert features.vector is not None
        return super().forward(features.vector).float()


class DenseHead(nn.Module):
    """Three 3x3 convolutions and a linear one on the fused map (B, W, S/4, S/4) -> float32 (B, outputs, S/4, S/4).

    The head of MuST's dense tasks (Ghiasi et al., ICCV 2021). For another `stride` than 4 the map is pooled before.
    """

    def __init__(self, info: FeatureInfo, outputs: int, stride: int = DENSE_STRIDE) -> None:
        super().__init__()
        self.outputs, self.pooled = outputs, stride // DENSE_STRIDE
        width, layers = info.pyramid_channels, list[nn.Module]()
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, outputs, 1))

    def forward(self, features: Features) -> Tensor:
        fused = features.fused
        assert fused is not None
        if self.pooled > 1:
            fused = F.avg_pool2d(fused, self.pooled, ceil_mode=True)
        return self.layers(fused).float()


class DenseTask(Task):
    """A task whose outputs and labels are maps: a `DenseHead`, and predictions of rasters (B, S/4, S/4, ...)."""

    stride: ClassVar[int] = DENSE_STRIDE
    """Pixels of the input per cell of the maps: `stride` of the task's label."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the raw output."""

    def head(self, info: FeatureInfo) -> nn.Module:
        return DenseHead(info, self.channels, self.stride)

    def value(self, prediction: Prediction, index: int, placement: Placement) -> Value:
        width, height = placement.valid
        rows, columns = cells(height, self.stride), cells(width, self.stride)
        return {name: array[index][:rows, :columns] for name, array in prediction.items()}


def cells(length: int, stride: int = DENSE_STRIDE) -> int:
    """Return how many cells of a dense map a length in pixels of the input covers."""
    return -(-length // stride)


def masked_mean(losses: Tensor, known: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean of `losses` where the mask `known`, of the same shape, is true; 0, with a graph, if nowhere.

    Losses where it is false don't count, whatever they are: NaN too. With `weights` w >= 0 of the images, (n,), it is
    sum(w L) / sum(w).
    """
    if weights is None:
        return losses.where(known, 0).sum() / known.sum().clamp(min=1)
    counted = known * per_image(weights, known)
    return (losses.where(known, 0) * counted).sum() / counted.sum().clamp(min=torch.finfo(counted.dtype).tiny)


def per_image(weights: Tensor, like: Tensor) -> Tensor:
    """Return weights of images (n,) in the dimensions of `like` (n, ...)."""
    return weights.view(-1, *(1 for _ in like.shape[1:]))


def stack(values: Sequence[Value], name: str) -> Tensor:
    """Stack the array `name` of all labels into a tensor (B, ...)."""
    return torch.from_numpy(np.stack([value[name] for value in values]))


def resample(raster: np.ndarray[Any, Any], like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Resize `raster` (h, w, ...) to the size of `like` (H, W, ...) by nearest cell; both cover the whole image."""
    rows = (np.arange(like.shape[0]) * 2 + 1) * raster.shape[0] // (2 * like.shape[0])
    columns = (np.arange(like.shape[1]) * 2 + 1) * raster.shape[1] // (2 * like.shape[1])
    return raster[rows[:, None], columns[None, :]]
