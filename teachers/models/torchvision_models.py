"""torchvision's detectors and segmenters as networks of one head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import tasks
from pipeline.errors import ConfigError, require_one_of
from pipeline.models.backbone import fitting, match, register_statistics
from pipeline.stores.labels import LabelSpace
from tasks.detection.model import MAX_BOXES, MIN_SCORE
from tasks.detection.model import TaskModel as Detection
from tasks.prediction import Predictor, Preprocessing
from tasks.task import DENSE_STRIDE, Prediction

PUBLISHED = "torchvision"
"""Where weights are that torchvision downloads."""
STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NOTHING = ("__background__", "N/A")
"""Outputs of a published detector that stand for no class."""
MODULES = {"detection": torchvision.models.detection, "segmentation": torchvision.models.segmentation}


class Segmenter(nn.Module):
    """uint8 images (B, 3, S, S) -> {head: logits (B, K, S/4, S/4)}."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, head: str) -> None:
        super().__init__()
        self.model, self.head = model, head
        register_statistics(self, STATISTICS)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.model((images - self.mean) / self.std)["out"].float()
        return {self.head: at_stride(logits, images.shape[-1])}


def at_stride(maps: Tensor, side: int) -> Tensor:
    """Maps (B, C, h, w) of square inputs, resized to (B, C, side/4, side/4)."""
    size = (side // DENSE_STRIDE, side // DENSE_STRIDE)
    return functional.interpolate(maps, size=size, mode="bilinear", antialias=True)


class Detector(nn.Module):
    """uint8 images (B, 3, S, S) -> {head: per image boxes (N, 4) in input pixels, scores and labels}.

    `places[i]` is the class, from 1, of the model's output i; outputs that are no class have 0 and are dropped.
    """

    places: Tensor

    def __init__(self, model: nn.Module, head: str, places: Sequence[int]) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.register_buffer("places", torch.tensor(places))

    def forward(self, images: Tensor) -> dict[str, Any]:
        found = self.model(list(images.float() / 255))
        return {self.head: {"images": [self._named(each) for each in found], "input": images.shape[-1]}}

    def _named(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        labels = self.places[found["labels"]]
        keep = labels > 0
        return {"boxes": found["boxes"][keep], "scores": found["scores"][keep], "labels": labels[keep]}


class DetectedBoxes(Detection):
    """The task for outputs that are boxes already."""

    def predict(self, output: Any) -> Prediction:
        return output


def check_name(task: str, name: str) -> None:
    """Raise ConfigError, with the names there are, unless torchvision has a model of this name for the task."""
    require_one_of(name, torchvision.models.list_models(module=MODULES[task]), f"torchvision {task} model")


def check(about: Mapping[str, Any]) -> None:
    """Raise ConfigError if there is no model as a `torchvision` teacher names it, or its weights are not there or are
    those of another.
    """
    check_name(about["task"], about["model"])
    if about["weights"] != PUBLISHED:
        with torch.device("meta"):
            model, _ = build(about)
        fitting(model, about["model"], about["weights"])


def build(about: Mapping[str, Any]) -> tuple[nn.Module, list[str]]:
    """The model that a `torchvision` teacher names, without weights, and the names of its outputs."""
    task, name = about["task"], about["model"]
    check_name(task, name)
    published = torchvision.models.get_model_weights(name)
    outputs = list(about["classes"]) or list(published.DEFAULT.meta["categories"])
    model: Any = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=len(outputs))
    if task == "detection":
        place = getattr(model, "roi_heads", model)
        place.score_thresh, place.detections_per_img = MIN_SCORE, MAX_BOXES
        if model.transform.fixed_size is None:  # an SSD has a size of its own
            model.transform.min_size, model.transform.max_size = (about["image_size"],), about["image_size"]
    return model, outputs


def fetch_weights(model: nn.Module, name: str, where: str) -> dict[str, Tensor]:
    """The weights of `where`, matched to the model; `torchvision` downloads what torchvision publishes."""
    if where != PUBLISHED:
        return fitting(model, name, where)
    published: dict[str, Tensor] = torchvision.models.get_model_weights(name).DEFAULT.get_state_dict()
    return match(model, published, where)


def space_of(task: str, outputs: Sequence[str]) -> tuple[LabelSpace, list[int]]:
    """The label space of a model's outputs, and for a detector each output's class from 1 (0 = none).

    A segmenter's background is a class like the others; a detector's is not.
    """
    if task != "detection":
        return LabelSpace(task, tuple(outputs)), []
    classes = tuple(name for name in outputs if name not in NOTHING)
    if not classes:
        raise ConfigError(f"classes {list(outputs)!r}: a detector needs a class beside the background.")
    return LabelSpace(task, classes), [0 if name in NOTHING else classes.index(name) + 1 for name in outputs]


def predictor(about: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Predictor:
    """The model saved as (about, weights), ready to label."""
    model, outputs = build(about)
    model.load_state_dict(weights)
    head, task = about["head"], about["task"]
    space, places = space_of(task, outputs)
    preparation = Preprocessing(about["image_size"])
    if task == "segmentation":
        return Predictor(Segmenter(model, head), {head: tasks.model(space)}, preparation)
    return Predictor(Detector(model, head, places), {head: DetectedBoxes(space)}, preparation)
