"""Training a network on joined images and labels, and predicting with it: what teachers and the student share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline import machine
from pipeline.augment import AugmentConfig, View, view_image
from pipeline.config import FitConfig
from pipeline.errors import DataError
from pipeline.fit import Job, fit
from pipeline.labels import LabelSpace, Value
from pipeline.loader import Batch, Library, Loader, LoaderConfig
from pipeline.machine import Choice
from pipeline.runtime import Runtime
from tasks.network import Network
from tasks.task import Prediction, Task

PROBE_IMAGES = 4
"""A training step is timed on."""
PREDICT_IMAGES = 16
"""Prediction is timed on."""

Combine = Callable[[Mapping[str, Tensor]], Tensor]


class Learning(nn.Module):
    """The objective of supervised learning: a network's losses and the rule that combines them to one number."""

    def __init__(self, network: Network, combine: nn.Module, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.network, self.combine, self.memory_format = network, combine, memory_format

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch.images.contiguous(memory_format=self.memory_format)
        losses = self.network.losses(images, batch.targets)
        if not losses:
            raise DataError(f"No image of this batch has a label: {', '.join(batch.keys)}.")
        return self.combine(losses), {name: loss.detach() for name, loss in losses.items()}


class Sum(nn.Module):
    """Losses times fixed weights, added up: sum_i w_i L_i."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()


@dataclasses.dataclass(frozen=True)
class Course:
    """How a network is trained: schedule, augmentation and seed."""

    fit: FitConfig
    augment: AugmentConfig
    seed: int


def train_network(
    network: Network, combine: nn.Module, library: Library, course: Course, place: tuple[str, Path, Runtime]
) -> Choice:
    """Train `network` in place on the library and return how it was run; `place` is (name, folder, runtime)."""
    name, out, runtime = place
    if not len(library):
        raise DataError(f"{name}: there is not one labelled image to train on.")
    collate = {head: task.collate for head, task in network.tasks.items()}
    piece = course.fit.batch // course.fit.accumulate
    config = LoaderConfig(network.config.image_size, piece, course.seed, course.augment, runtime.threads)
    loader = Loader(library, collate, config)
    about = [network.config.model_dump(), "train"]
    choice = machine.choose(runtime, about, Learning(network, combine, torch.contiguous_format), _probe(loader))
    objective = Learning(network, combine, choice.memory_format)
    steps = course.fit.total_steps(len(library))
    fit(Job(name, objective, loader, steps, out, course.fit), choice, runtime)
    return choice


def _probe(loader: Loader) -> Callable[[nn.Module, Choice], None]:
    """A training step on a few real images, for timing."""
    small = Loader(loader.library, loader.collate, dataclasses.replace(loader.config, batch=PROBE_IMAGES))
    batch = small.batch(0)

    def call(model: nn.Module, choice: Choice) -> None:
        assert isinstance(model, Learning)
        model.memory_format = choice.memory_format
        fabric = choice.fabric()
        with choice.autocast():
            total, _ = model.train()(fabric.to_device(batch))
        total.backward()
        model.zero_grad()

    return call


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How an image becomes a model's input: resized whole to `size` x `size`, or, with `centre` < 1, the central
    square of that share of the shorter side, as classifiers are tested. Hashable: teachers that agree share the work.
    """

    size: int
    centre: float | None = None
    bicubic: bool = False

    def __call__(self, image: Image.Image) -> np.ndarray[Any, Any]:
        """RGB image -> (size, size, 3) uint8."""
        if self.centre is None:
            return view_image(image, View(), self.size)
        side = self.centre * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        filtering = Image.Resampling.BICUBIC if self.bicubic else Image.Resampling.BILINEAR
        box = (left, top, left + side, top + side)
        return np.asarray(image.resize((self.size, self.size), filtering, box=box, reducing_gap=3.0))

    def enough(self) -> tuple[int, int]:
        """The size below which a reduced decode would lose detail."""
        side = self.size if self.centre is None else round(self.size / self.centre)
        return side, side


class Predictor:
    """A model that labels images: a network's heads, laid out for this machine."""

    def __init__(self, network: nn.Module, heads: Mapping[str, Task], preparation: Preparation) -> None:
        self.network, self.heads, self.preparation = network.eval(), dict(heads), preparation
        self.choice = Choice("cpu", "32", False, {})

    @property
    def spaces(self) -> dict[str, LabelSpace]:
        return {name: head.space for name, head in self.heads.items()}

    def settle(self, runtime: Runtime, about: Any) -> Predictor:
        """Choose device, precision and layout by measurement and move there. `about` (JSON) tells this model from
        others: what its `model.json` says.
        """
        size = self.preparation.size
        images = torch.randint(0, 256, (PREDICT_IMAGES, 3, size, size), dtype=torch.uint8)

        def call(model: nn.Module, choice: Choice) -> None:
            with torch.inference_mode(), choice.autocast():
                model(images.to(choice.device).contiguous(memory_format=choice.memory_format))

        self.choice = machine.choose(runtime, [about, "predict"], self.network, call)
        self.choice.place(self.network)
        return self

    @torch.inference_mode()
    def predict(self, images: Tensor) -> dict[str, Prediction]:
        """uint8 images (B, 3, S, S), prepared -> predictions by head, as NumPy arrays."""
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
    return Predictor(network, network.tasks, Preparation(network.config.image_size))


def to_numpy(tree: Any) -> Any:
    """Tensors in nested dicts and lists as NumPy arrays on the host; bfloat16 as float32."""
    if isinstance(tree, Tensor):
        return (tree.float() if tree.dtype == torch.bfloat16 else tree).cpu().numpy()
    if isinstance(tree, Mapping):
        return {name: to_numpy(branch) for name, branch in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [to_numpy(branch) for branch in tree]
    return tree
