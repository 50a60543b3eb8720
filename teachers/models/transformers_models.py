"""Models of Hugging Face transformers as networks of one head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import tasks
from pipeline.errors import ConfigError, DataError
from pipeline.models.backbone import register_statistics
from pipeline.models.weights import HUB
from pipeline.stores.labels import LabelSpace
from tasks.detection.model import MAX_BOXES, MIN_SCORE
from tasks.prediction import Predictor, Preprocessing
from teachers.models import torchvision_models

MODELS = {
    "classification": "AutoModelForImageClassification",
    "detection": "AutoModelForObjectDetection",
    "segmentation": "AutoModelForSemanticSegmentation",
    "depth": "AutoModelForDepthEstimation",
}
BICUBIC = 3
"""Pillow's number of the filter, as processors store it."""
WARPED_FROM = 384
"""Side in pixels from which ConvNeXt's processor resizes the whole image and crops nothing."""
NEAREST_M = 1e-3
"""Depths in metres are held above it: heads give their logarithm."""


def fetch(where: str, task: str) -> tuple[Any, Any]:
    """The model for a task, in float32, and its image processor, from a folder or the hub.

    Only safetensors are read and no code that comes with a model is run. Raises ConfigError if there is no such model
    or it is not for the task, DataError if its weights lack a part of it.
    """
    dataset: Any = transformers
    dataset.logging.set_verbosity_error()
    dataset.logging.disable_progress_bar()
    local = not where.startswith(HUB)
    place = Path(where).expanduser() if local else where.removeprefix(HUB)
    try:
        model, info = getattr(dataset, MODELS[task]).from_pretrained(
            place, local_files_only=local, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        processor = dataset.AutoImageProcessor.from_pretrained(place, local_files_only=local)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{where!r} can't be loaded as a {task} model: {reason} Give a folder that save_pretrained wrote, "
            f"with config.json, model.safetensors and preprocessor_config.json, or hub:<owner>/<model>."
        ) from error
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise DataError(f"{where!r} has no weights for {some}: it was not trained for {task}.")
    return model, processor


def describe(model: Any, processor: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """What the teacher's `model.json` says: how images are prepared and what the outputs are."""
    size, centre = _input(processor, about["image_size"])
    if getattr(processor, "do_flip_channel_order", False):
        raise ConfigError(f"{about['weights']!r} was trained on images with blue first; only red first is supported.")
    names = model.config.id2label
    return {
        "format": "transformers",
        **{key: about[key] for key in ("weights", "task", "head", "scale")},
        "classes": [] if about["task"] == "depth" else [str(names[number]) for number in sorted(names)],
        "size": size,
        "centre": centre if about["task"] == "classification" else None,  # a map or a box is of the whole image
        "bicubic": int(getattr(processor, "resample", None) or 0) == BICUBIC,
        **_statistics(processor),
    }


def _statistics(processor: Any) -> dict[str, list[float]]:
    """Mean and standard deviation per channel for images in [0, 1], whatever range the processor normalises in."""
    white = 255 * processor.rescale_factor if processor.do_rescale else 255
    offset = 1 if getattr(processor, "rescale_offset", False) else 0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    return {"mean": [(value + offset) / white for value in mean], "std": [value / white for value in std]}


def _input(processor: Any, wanted: int | None) -> tuple[int, float | None]:
    """(side of the input, share of the shorter side in the central crop; None: the whole image is resized)."""
    size = dict(processor.size or {})
    side: int | None = size.get("shortest_edge") or size.get("height") or wanted
    if side is None:
        raise ConfigError(f"The model's preprocessing, size {size!r}, states no side; give image_size.")
    if getattr(processor, "do_center_crop", False):
        crop: int = dict(processor.crop_size)["height"]
        return wanted or crop, min(crop / side, 1.0)
    share = getattr(processor, "crop_pct", None)  # ConvNeXt: only below 384 pixels
    return wanted or side, share if share and side < WARPED_FROM else None


def space_of(about: Mapping[str, Any]) -> tuple[LabelSpace, list[int]]:
    """The label space of the outputs, and for a detector each output's class from 1 (0 = none)."""
    if about["task"] == "depth":
        return LabelSpace("depth", (), about["scale"]), []
    return torchvision_models.space_of(about["task"], about["classes"])


class Reader(nn.Module):
    """Of classifiers. uint8 images (B, 3, S, S) -> {head: raw output, as the task's own head would give it}."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, processor: Any, about: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.head = model, about["head"]
        register_statistics(self, (about["mean"], about["std"]))

    def forward(self, images: Tensor) -> dict[str, Any]:
        output = self.model(pixel_values=(images - self.mean) / self.std)
        return {self.head: self.read(output, images.shape[-1])}

    def read(self, output: Any, side: int) -> Any:
        """Class logits (B, K)."""
        return output.logits.float()


class MapReader(Reader):
    """Of segmenters."""

    def read(self, output: Any, side: int) -> Tensor:
        """Class logits (B, K, S/4, S/4)."""
        return torchvision_models.at_stride(output.logits.float(), side)


class DepthReader(Reader):
    """Of depth models."""

    def __init__(self, model: nn.Module, processor: Any, about: Mapping[str, Any]) -> None:
        super().__init__(model, processor, about)
        self.metric = about["scale"] == "metric"

    def read(self, output: Any, side: int) -> Tensor:
        """(B, 1, S/4, S/4): the logarithm of metres, or relative inverse depth."""
        found = torchvision_models.at_stride(output.predicted_depth.float()[:, None], side)
        return found.clamp(min=NEAREST_M).log() if self.metric else found


class BoxReader(Reader):
    """Of detectors: the library's own post-processing makes boxes of their outputs."""

    places: Tensor

    def __init__(self, model: nn.Module, processor: Any, about: Mapping[str, Any]) -> None:
        super().__init__(model, processor, about)
        self.finish = processor.post_process_object_detection
        self.register_buffer("places", torch.tensor(space_of(about)[1]))

    def read(self, output: Any, side: int) -> dict[str, Any]:
        """Per image boxes (N, 4) in input pixels, scores and labels, best first."""
        output.logits, output.pred_boxes = output.logits.float(), output.pred_boxes.float()
        found = self.finish(output, threshold=MIN_SCORE, target_sizes=[(side, side)] * len(output.logits))
        return {"images": [self._best(each) for each in found], "input": side}

    def _best(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        labels = self.places[found["labels"]]
        order = found["scores"].argsort(descending=True, stable=True)
        order = order[labels[order] > 0][:MAX_BOXES]
        return {"boxes": found["boxes"][order], "scores": found["scores"][order], "labels": labels[order]}


READERS = {"classification": Reader, "detection": BoxReader, "segmentation": MapReader, "depth": DepthReader}


def predictor(folder: Path, about: Mapping[str, Any]) -> Predictor:
    """The model in `folder`, ready to label."""
    model, processor = fetch(str(folder), about["task"])
    space, _ = space_of(about)
    reader = READERS[about["task"]](model, processor, about)
    task = torchvision_models.DetectedBoxes(space) if isinstance(reader, BoxReader) else tasks.model(space)
    return Predictor(reader, {about["head"]: task}, Preprocessing(about["size"], about["centre"], about["bicubic"]))
