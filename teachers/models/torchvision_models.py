"""torchvision's detectors and segmenters, wrapped as networks of one head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

import tasks
from pipeline.data.augment import ValidSizes
from pipeline.data.statistics import Statistics
from pipeline.errors import ConfigError, require_one_of
from pipeline.models.backbone import register_statistics
from pipeline.models.weight_loading import match_weights, read_matching_weights
from pipeline.stores.labels import LabelSpace
from pipeline.stores.rasters import DENSE_STRIDE
from tasks.detection.model import TaskModel as Detection
from tasks.prediction import Predictor, Preprocessing
from tasks.rcnn import MAX_BOXES, MIN_SCORE
from tasks.task import Prediction
from teachers.models.trunk import catch_trunk, pool_features, tap_trunk

PUBLISHED = "torchvision"
"""Value of `weights` for those that torchvision downloads."""
MIN_SIDE = 1e-3
"""Pixels; boxes with a shorter side are dropped, as torchvision's proposals are."""
STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
UNCHANGED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Statistics for detectors, which normalize by themselves: images in [0, 1]."""
NO_CLASS = ("__background__", "N/A")
"""Names of a published detector's outputs that are no class."""
MODULES = {"detection": torchvision.models.detection, "segmentation": torchvision.models.segmentation}


class Adapter(nn.Module):
    """A model of another library as a network of one head: uint8 images (B, 3, S, S) -> {head: raw output}."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, head: str, statistics: Statistics) -> None:
        super().__init__()
        self.model, self.head = model, head
        register_statistics(self, statistics)
        tap_trunk(model)

    def forward(self, images: Tensor) -> dict[str, Any]:
        return {self.head: self.run((images - self.mean) / self.std)}

    def forward_with_vector(self, images: Tensor) -> tuple[dict[str, Any], Tensor | None]:
        """Return the raw output by head, and vectors (B, D) of what the model's trunk returns, None if it has none."""
        with catch_trunk() as caught:
            outputs = self(images)
        return outputs, pool_features(caught[-1]) if caught else None

    def vector(self, images: Tensor) -> Tensor | None:
        """Return the vectors (B, D), None if the model has no trunk."""
        return self.forward_with_vector(images)[1]

    def run(self, inputs: Tensor) -> Any:
        """Return for normalized images (B, 3, S, S) what the task's own head would give."""
        raise NotImplementedError


class Segmenter(Adapter):
    """A segmenter: logits (B, K, S/4, S/4) float32."""

    def run(self, inputs: Tensor) -> Tensor:
        return resize_to_stride(self.model(inputs)["out"].float(), inputs.shape[-1])


def resize_to_stride(maps: Tensor, side: int) -> Tensor:
    """Resize maps (B, C, h, w) of square inputs of this side to (B, C, side/4, side/4)."""
    size = (side // DENSE_STRIDE, side // DENSE_STRIDE)
    return F.interpolate(maps, size=size, mode="bilinear", antialias=True)


class Detector(Adapter):
    """A detector: boxes (N, 4) in input pixels, scores and labels of each image, best first.

    `class_of_output[i]` is the class, from 1, of the model's output i, or 0 if it is no class: such boxes are dropped.
    """

    class_of_output: Tensor

    def __init__(self, model: nn.Module, head: str, statistics: Statistics, class_of_output: Sequence[int]) -> None:
        super().__init__(model, head, statistics)
        self.register_buffer("class_of_output", torch.tensor(class_of_output))

    def run(self, inputs: Tensor) -> list[dict[str, Tensor]]:
        return [self._best(each) for each in self.detect(inputs)]

    def detect(self, inputs: Tensor) -> list[dict[str, Tensor]]:
        """Return `boxes`, `scores` and `labels` of each image, with labels that are numbers of the model's outputs."""
        return self.model(list(inputs))

    def _best(self, detected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        labels = self.class_of_output[detected["labels"]]
        order = detected["scores"].argsort(descending=True, stable=True)
        order = order[labels[order] > 0][:MAX_BOXES]
        return {"boxes": detected["boxes"][order], "scores": detected["scores"][order], "labels": labels[order]}


class DetectedBoxes(Detection):
    """The detection task for networks whose outputs are boxes already."""

    def predict(self, output: Any, valid: ValidSizes = None) -> Prediction:
        return {"images": [_clip(*pair) for pair in zip(output, valid, strict=True)] if valid else output}


def _clip(detected: Mapping[str, Tensor], valid: tuple[int, int]) -> dict[str, Tensor]:
    """Clip boxes to an image's valid region (width, height), and drop those that lie outside of it."""
    boxes = clip_boxes_to_image(detected["boxes"], valid[::-1])
    inside = remove_small_boxes(boxes, MIN_SIDE)
    return {**{name: entries[inside] for name, entries in detected.items()}, "boxes": boxes[inside]}


def check_model(about: Mapping[str, Any]) -> None:
    """Raise ConfigError if a `torchvision` teacher names an unknown model, or weights that are missing or another's."""
    with torch.device("meta"):
        model, _ = build(about)
    if about["weights"] != PUBLISHED:
        read_matching_weights(model, about["model"], about["weights"])


def build(about: Mapping[str, Any]) -> tuple[nn.Module, list[str]]:
    """Build the model that a `torchvision` teacher names, without weights; return it and the names of its outputs.

    Raises ConfigError, with the known names, unless torchvision has such a model for the task.
    """
    task, name, outputs = about["task"], about["model"], output_names(about)
    model: Any = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=len(outputs))
    if task == "detection":
        postprocessor = getattr(model, "roi_heads", model)
        postprocessor.score_thresh, postprocessor.detections_per_img = MIN_SCORE, MAX_BOXES
        if model.transform.fixed_size is None:  # an SSD has a size of its own
            model.transform.min_size, model.transform.max_size = (about["image_size"],), about["image_size"]
    return model, outputs


def output_names(about: Mapping[str, Any]) -> list[str]:
    """Return the names of the outputs of the model that a `torchvision` teacher names.

    Raises ConfigError, with the known names, unless torchvision has such a model for the task.
    """
    task, name = about["task"], about["model"]
    require_one_of(name, torchvision.models.list_models(module=MODULES[task]), f"torchvision {task} model")
    return list(about["classes"]) or list(torchvision.models.get_model_weights(name).DEFAULT.meta["categories"])


def fetch_weights(model: nn.Module, name: str, where: str) -> dict[str, Tensor]:
    """Fetch weights from `where` and match them to the model; `torchvision` downloads what torchvision publishes."""
    if where != PUBLISHED:
        return read_matching_weights(model, name, where)
    return match_weights(model, torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(), where)


def space_of(task: str, outputs: Sequence[str]) -> tuple[LabelSpace, list[int]]:
    """Return the label space of a model's outputs, and for a detector each output's class, from 1 (0: no class).

    A segmenter's background is a class like the others; a detector's is not.
    """
    if task != "detection":
        return LabelSpace(task, tuple(outputs)), []
    classes = tuple(name for name in outputs if name not in NO_CLASS)
    if not classes:
        raise ConfigError(f"classes {list(outputs)!r}: a detector needs a class beside the background.")
    return LabelSpace(task, classes), [0 if name in NO_CLASS else classes.index(name) + 1 for name in outputs]


def build_predictor(about: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Predictor:
    """Build the predictor of a model that was saved as (about, weights)."""
    model, outputs = build(about)
    model.load_state_dict(weights)
    head, task = about["head"], about["task"]
    space, class_of_output = space_of(task, outputs)
    preprocessing = Preprocessing(about["image_size"], about["resize"])
    if task == "segmentation":
        return Predictor(Segmenter(model, head, STATISTICS), {head: tasks.model(space)}, preprocessing)
    detector = Detector(model, head, UNCHANGED, class_of_output)
    return Predictor(detector, {head: DetectedBoxes(space)}, preprocessing)
