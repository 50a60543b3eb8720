"""Predict with a network: images in, labels out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.data.augment import View, view_image
from pipeline.errors import ConfigError
from pipeline.steps.artifact import Artifact, read_json
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import LabelSpace, Value
from pipeline.training import autotune
from pipeline.training.autotune import ComputeConfig
from tasks.network import Network
from tasks.task import Prediction, Task

PREDICT_IMAGES = 16
"""Prediction is timed on."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input: resized whole to `size` x `size`, or, with `crop_pct` < 1, the central
    square of that share of the shorter side, as classifiers are tested. Hashable: teachers that agree share the work.
    """

    size: int
    crop_pct: float | None = None
    bicubic: bool = False

    def __call__(self, image: Image.Image) -> np.ndarray[Any, Any]:
        """RGB image -> (size, size, 3) uint8."""
        if self.crop_pct is None:
            return view_image(image, View(), self.size)
        side = self.crop_pct * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        filtering = Image.Resampling.BICUBIC if self.bicubic else Image.Resampling.BILINEAR
        box = (left, top, left + side, top + side)
        return np.asarray(image.resize((self.size, self.size), filtering, box=box, reducing_gap=3.0))

    def min_decode_size(self) -> tuple[int, int]:
        """The size below which a reduced decode would lose detail."""
        side = self.size if self.crop_pct is None else round(self.size / self.crop_pct)
        return side, side


class Predictor:
    """A model that labels images: a network's heads, laid out for this machine."""

    def __init__(self, network: nn.Module, heads: Mapping[str, Task], preprocessing: Preprocessing) -> None:
        self.network, self.heads, self.preprocessing = network.eval(), dict(heads), preprocessing
        self.choice = ComputeConfig("cpu", "32", False, {})
        self.most: int | None = None
        """How many images at once memory holds, if more were too many."""

    @property
    def spaces(self) -> dict[str, LabelSpace]:
        return {name: head.space for name, head in self.heads.items()}

    def setup(self, runtime: Runtime, about: Any) -> Predictor:
        """Choose device, precision and layout by measurement and move there. `about` (JSON) tells this model from
        others: what its `model.json` says.
        """
        size = self.preprocessing.size
        images = torch.randint(0, 256, (PREDICT_IMAGES, 3, size, size), dtype=torch.uint8)

        def call(model: nn.Module, choice: ComputeConfig) -> None:
            with torch.inference_mode(), choice.autocast():
                model(images.to(choice.device).contiguous(memory_format=choice.memory_format))

        self.choice = autotune.autotune(runtime, [about, "predict"], self.network, call)
        self.choice.place(self.network)
        return self

    def predict(self, images: Tensor) -> dict[str, Prediction]:
        """uint8 images (B, 3, S, S), prepared -> predictions by head, as NumPy arrays.

        Where the device's memory does not hold them all, by halves, quarters and so on; ConfigError if not even one.
        """
        while True:
            found = self._predict(images.split(self.most or max(1, len(images))))
            if found is not None:
                return join_predictions(found)
            most = min(self.most or len(images), len(images))
            if most == 1:
                raise ConfigError("The device's memory does not hold one image's prediction: set a smaller image_size.")
            self.most = -(-most // 2)

    @torch.inference_mode()
    def _predict(self, pieces: Sequence[Tensor]) -> list[dict[str, Prediction]] | None:
        """Predictions piece by piece, None if memory ran out."""
        try:
            return [self._predict_piece(piece) for piece in pieces]
        except torch.OutOfMemoryError:
            return None

    def _predict_piece(self, images: Tensor) -> dict[str, Prediction]:
        laid = images.to(self.choice.device, non_blocking=True).contiguous(memory_format=self.choice.memory_format)
        with self.choice.autocast():
            outputs = self.network(laid)
            found = {name: head.predict(outputs[name]) for name, head in self.heads.items()}
        return {name: to_numpy(prediction) for name, prediction in found.items()}

    def values(self, predictions: Mapping[str, Prediction], index: int, size: tuple[int, int]) -> dict[str, Value]:
        """The labels, by head, of image `index` of the batch, which is `size` = (width, height) pixels large."""
        return {name: head.value(predictions[name], index, size) for name, head in self.heads.items()}


class OneHead(nn.Module):
    """One of a network's heads, under a name of its own; the others are not computed."""

    def __init__(self, network: Network, head: str, name: str) -> None:
        super().__init__()
        self.network, self.head, self.name = network, head, name

    def forward(self, images: Tensor) -> dict[str, Any]:
        return {self.name: self.network(images, [self.head])[self.head]}


def network_predictor(network: Network) -> Predictor:
    """Predictions of every head of a network."""
    return Predictor(network, network.tasks, Preprocessing(network.config.image_size))


def load_network(made: Artifact, runtime: Runtime) -> Predictor:
    """All heads of the network in an artifact, ready to predict on this machine."""
    return network_predictor(made.load_all(Network.load)).setup(runtime, made.load("model.json", read_json))


def to_numpy(tree: Any) -> Any:
    """Tensors in nested dicts and lists as NumPy arrays on the host; bfloat16 as float32."""
    if isinstance(tree, Tensor):
        return (tree.float() if tree.dtype == torch.bfloat16 else tree).cpu().numpy()
    if isinstance(tree, Mapping):
        return {name: to_numpy(branch) for name, branch in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [to_numpy(branch) for branch in tree]
    return tree


def join_predictions(parts: Sequence[Any]) -> Any:
    """Predictions for the parts of a batch as one: arrays and lists, of an entry per image, in a row."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Mapping):
        return {name: join_predictions([part[name] for part in parts]) for name in first}
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    return [entry for part in parts for entry in part] if isinstance(first, list) else first
