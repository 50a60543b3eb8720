"""How a vision task is learned: its head, loss, prediction, metric and the constant that any model has to beat."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.stores.labels import LabelSpace, Value

Target = dict[str, Any]
Prediction = dict[str, Any]
STRIDE = 4
"""Dense heads work at a quarter of the input's resolution: the level of the fused map."""


@dataclasses.dataclass(frozen=True)
class FeatureInfo:
    """What a head is built for: channels of C5 (`top`), of the pyramid and of the fused map; input size in pixels."""

    top: int
    pyramid: int
    strides: tuple[int, ...]
    image_size: int
    proposals: int = 128


@dataclasses.dataclass
class Features:
    """What the shared part of the network gives to the heads.

    `top` (B, C, S/32, S/32); `pyramid` P3 to P7, each (B, W, S/stride, S/stride); `fused` (B, W, S/4, S/4), the sum
    of all pyramid levels resized to stride 4. The last two are missing where no head needs them.
    """

    top: Tensor
    pyramid: list[Tensor] = dataclasses.field(default_factory=list)
    fused: Tensor | None = None

    def select(self, images: Tensor) -> Features:
        """The features of the images at these positions of the batch."""
        fused = None if self.fused is None else self.fused[images]
        return Features(self.top[images], [level[images] for level in self.pyramid], fused)


class Metric(Protocol):
    """Accumulates over images in float64; the result does not depend on how they were batched or ordered."""

    def update(self, predicted: Value, true: Value) -> None: ...

    def compute(self) -> dict[str, float]: ...


class Task(ABC):
    """One task over one label space. Holds no parameters: they are in the head it builds."""

    needs_pyramid: ClassVar[bool] = True
    better: ClassVar[dict[str, str]]
    """The metrics, the leading one first, each "higher" or "lower"."""

    def __init__(self, space: LabelSpace) -> None:
        self.space = space

    @abstractmethod
    def head(self, features: FeatureInfo) -> nn.Module:
        """A module from Features to this task's raw output."""

    @abstractmethod
    def collate(self, values: Sequence[Value]) -> Target:
        """Labels of a batch, cropped to the images' views, as tensors."""

    @abstractmethod
    def loss(self, output: Any, target: Target) -> Tensor:
        """A scalar: the mean over what is known; 0, with a graph, where nothing is."""

    @abstractmethod
    def amount(self, target: Target) -> float:
        """How much there is in a target of what `loss` is a mean over: labels, or known pixels."""

    @abstractmethod
    def predict(self, output: Any) -> Prediction:
        """Raw output -> tensors on the same device, one entry per image."""

    @abstractmethod
    def value(self, prediction: Prediction, index: int, size: tuple[int, int]) -> Value:
        """Label of image `index` out of a prediction moved to NumPy; `size` = (width, height) of the image."""

    @abstractmethod
    def metrics(self) -> Metric:
        """A fresh metric; its names are the keys of `better`."""

    @abstractmethod
    def constant_label(self, values: Iterable[Value]) -> Value:
        """The best label that does not look at the image, from the training labels: the trivial baseline."""


class DenseHead(nn.Module):
    """Three 3x3 convolutions and one linear one on the fused map: (B, W, S/4, S/4) -> (B, outputs, S/4, S/4)."""

    def __init__(self, features: FeatureInfo, outputs: int) -> None:
        width = features.pyramid
        hidden = [layer for _ in range(3) for layer in (*conv_norm(width, width), nn.ReLU(inplace=True))]
        super().__init__()
        self.layers = nn.Sequential(*hidden, nn.Conv2d(width, outputs, 1))

    def forward(self, features: Features) -> Tensor:
        output: Tensor = self.layers(features.fused)
        return output.float()


def conv_norm(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    """A 3x3 convolution and its batch norm."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)


def masked_mean(losses: Tensor, known: Tensor) -> Tensor:
    """Mean of `losses` where `known`; 0 (with a graph) where nothing is. Both of the same shape."""
    return (losses * known).sum() / known.sum().clamp(min=1)


def stack(values: Sequence[Value], name: str) -> Tensor:
    """One named array of every label, as a batch."""
    return torch.from_numpy(np.stack([value[name] for value in values]))


def resample(grid: np.ndarray[Any, Any], like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`grid` (h, w, ...) on the raster of `like` (H, W, ...): nearest cell, both covering the whole image."""
    rows = (np.arange(like.shape[0]) * 2 + 1) * grid.shape[0] // (2 * like.shape[0])
    columns = (np.arange(like.shape[1]) * 2 + 1) * grid.shape[1] // (2 * like.shape[1])
    return grid[rows[:, None], columns[None, :]]
