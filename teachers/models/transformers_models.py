"""Models of Hugging Face transformers, wrapped as networks of one head."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

import tasks
from pipeline.data.statistics import Statistics
from pipeline.errors import ConfigError, DataError
from pipeline.models.weight_loading import check_finite_weights
from pipeline.models.weights import expand_home
from pipeline.recipe.weight_names import HUB
from pipeline.storage.shortage import raise_shortage
from pipeline.stores.labels import LabelSpace
from tasks.prediction import Predictor, Preprocessing
from tasks.rcnn import MIN_SCORE
from teachers.models import torchvision_models
from teachers.models.torchvision_models import Adapter, DetectedBoxes, Detector, resize_to_stride

MODELS = {
    "classification": "AutoModelForImageClassification",
    "multilabel": "AutoModelForImageClassification",
    "detection": "AutoModelForObjectDetection",
    "segmentation": "AutoModelForSemanticSegmentation",
    "depth": "AutoModelForDepthEstimation",
}
IMAGES = "AutoImageProcessor"
"""The library's class of what prepares images."""
MULTILABEL = "multi_label_classification"
"""The `problem_type` of classifiers whose outputs are a yes or no each."""
BICUBIC = 3
"""Pillow's number of the bicubic filter, as processors store it."""
UNCROPPED_FROM = 384
"""Side in pixels from which on ConvNeXt's processor resizes the whole image and crops nothing."""
RESAMPLES = "interpolate_pos_encoding"
"""Argument of models that can resample their position embeddings."""
MIN_DEPTH_M = 1e-3
"""Depths in metres are clamped to it, because outputs are their logarithm."""


def fetch(where: str, task: str) -> tuple[Any, Any]:
    """Load the model for a task and its image processor, from a folder or the hub.

    Raises ConfigError as `load_config`, `load_network` and `load_part` do, or if the model is not for the task.
    """
    load_config(where, task)
    model = load_network(where, MODELS[task], task)
    processor = load_part(where, IMAGES, task)
    _check_problem_type(where, task, model.config.problem_type)
    return model, processor


def load_network(where: str, part: str, task: str, optional: str = "") -> Any:
    """Load a model by the library's class `part`, in float32 and eval mode, from a folder or the hub.

    Only safetensors are read. `optional`: a module of the model that becomes None if it has no weights. Raises
    ConfigError as `load_part` does, or if weights are of other shapes or not finite; DataError if they lack another
    part of the model.
    """
    options = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    model, info = load_part(where, part, task, ignore_mismatched_sizes=True, **options)
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise ConfigError(
            f"{where!r}: its weights {name} are {tuple(found)}, and config.json makes them {tuple(expected)}: give a "
            "folder whose files are of one model."
        )
    missing = sorted(info["missing_keys"])
    if optional and missing and all(key.startswith(f"{optional}.") for key in missing):
        setattr(model, optional, None)
    elif missing:
        raise DataError(f"{where!r} has no weights for {', '.join(missing[:3])}: it was not trained for {task}.")
    check_finite_weights(dict(model.named_parameters()), where)
    return model


def load_part(where: str, part: str, task: str, **options: Any) -> Any:
    """Load what belongs to a model for a task by the library's class `part`, from a folder or the hub.

    No code that comes with a model is run. Raises ConfigError if there is no such thing, or it is damaged; Shortage if
    the machine is short of something.
    """
    library: Any = transformers
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    local = not where.startswith(HUB)
    source = expand_home(where) if local else where.removeprefix(HUB)
    try:
        return getattr(library, part).from_pretrained(
            source, local_files_only=local, trust_remote_code=False, **options
        )
    except Exception as error:  # damaged files make the library raise errors of any type
        raise_shortage(error, where)
        raise ConfigError(
            f"{where!r} can't be loaded as a {task} model: {_reason(error)} Give a folder that save_pretrained wrote, "
            "with config.json, model.safetensors, preprocessor_config.json and, for prompts, the files of the "
            "tokenizer, or hub:<owner>/<model>."
        ) from error


def _reason(error: Exception) -> str:
    """Return the library's text up to the first line that is a sentence, after the type of errors not for users."""
    line, _, more = str(error).strip().partition("\n")
    text = f"{line} {more.strip().partition(chr(10))[0]}" if line.endswith(":") else line
    known = isinstance(error, ImportError | OSError | ValueError) and text
    return text if known else f"{type(error).__name__} {text}".rstrip(" .") + "."


def load_config(where: str, task: str) -> Any:
    """Load a model's config.json. Raises ConfigError as `load_part` does, or if its patches have no pixels."""
    config = load_part(where, "AutoConfig", task)
    patch = getattr(getattr(config, "vision_config", config), "patch_size", None)
    sides = patch if isinstance(patch, list | tuple) else [patch]
    if any(isinstance(side, int) and side <= 0 for side in sides):
        raise ConfigError(f"{where!r}: the patch_size in its config.json is {patch}: a number above 0 would work.")
    return config


def _check_problem_type(where: str, task: str, problem_type: str | None) -> None:
    """Raise ConfigError if a classifier is of several classes per image and the task of one, or the reverse."""
    if MODELS[task] != MODELS["multilabel"] or (task == "multilabel") == (problem_type == MULTILABEL):
        return
    fitting = "multilabel" if problem_type == MULTILABEL else "classification"
    raise ConfigError(
        f"task is {task!r}, but {where!r} is for {fitting!r}: the problem_type in its config.json is {problem_type!r}."
    )


def describe(model: Any, processor: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the teacher's `model.json`: its preprocessing, and the names of its outputs."""
    return {
        "format": "transformers",
        **{key: about[key] for key in ("weights", "task", "head", "scale", "resize")},
        "classes": _output_names(model.config, about["task"]),
        **describe_input(processor, about),
    }


def describe_input(processor: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a teacher's `model.json` that says how images become its input.

    Raises ConfigError if the preprocessing states no side, mean or standard deviation that can be used.
    """
    where = about["weights"]
    size, center = _input(processor, about["image_size"], where)
    if getattr(processor, "do_flip_channel_order", False):
        raise ConfigError(f"{where!r} was trained on images with blue first; only red first is supported.")
    return {
        "size": size,
        # maps, boxes and features have to be of the whole image
        "centre": center if MODELS.get(about["task"]) == MODELS["classification"] else None,
        "bicubic": int(getattr(processor, "resample", None) or 0) == BICUBIC,
        **_statistics(processor, where),
    }


def check_image_size(config: Any, size: int | None) -> None:
    """Raise ConfigError unless images of this side in pixels are whole patches, or those the model was trained on."""
    vision = getattr(config, "vision_config", config)
    patch = getattr(vision, "patch_size", None)
    if size and isinstance(patch, int) and size % patch and size != getattr(vision, "image_size", None):
        raise ConfigError(
            f"image_size {size} is no multiple of the {patch} pixels of the model's patches: "
            f"{max(size // patch, 1) * patch} or {(size // patch + 1) * patch} would work."
        )


def preprocessing_of(about: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that a teacher's `model.json` states."""
    return Preprocessing(about["size"], about["resize"], about["centre"], about["bicubic"])


def folder_space(folder: str, task: str, scale: str) -> LabelSpace:
    """Return the label space of a model in a folder, from its configuration. Raises ConfigError if it has none."""
    names = _output_names(load_config(folder, task), task)
    return space_of({"task": task, "scale": scale, "classes": names})[0]


def _output_names(config: Any, task: str) -> list[str]:
    names = config.id2label
    return [] if task == "depth" else [str(names[number]) for number in sorted(names)]


def _read_numbers(where: str, name: str, value: Any, count: int = 1, positive: bool = True) -> NDArray[np.float64]:
    """Return numbers (count,) that the preprocessing states. Raises ConfigError unless they are finite, or above 0."""
    try:
        numbers = np.array(value, np.float64, ndmin=1)
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if numbers.shape != (count,) or not np.isfinite(numbers).all() or (positive and numbers.min() <= 0):
        wanted = f"{'a finite number' if count == 1 else f'{count} finite numbers'}{' above 0' * positive}"
        raise ConfigError(f"{where!r}: the {name} in its preprocessor_config.json is {value!r}: {wanted} would work.")
    return numbers


def _statistics(processor: Any, where: str) -> dict[str, list[float]]:
    """Return mean and standard deviation per channel for images in [0, 1], whatever range the processor uses."""
    rescale = processor.rescale_factor if processor.do_rescale else 1
    white = 255 * _read_numbers(where, "rescale_factor", rescale)
    offset = 1 if getattr(processor, "rescale_offset", False) else 0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    means = _read_numbers(where, "image_mean", mean, 3, positive=False)
    return {
        "mean": ((means + offset) / white).tolist(),
        "std": (_read_numbers(where, "image_std", std, 3) / white).tolist(),
    }


def _input(processor: Any, image_size: int | None, where: str) -> tuple[int, float | None]:
    """Return the side of the input in pixels, and the share of the shorter side in the central crop; None: no crop."""
    size = dict(processor.size or {})
    stated = size.get("shortest_edge", size.get("height", image_size))
    if stated is None:
        raise ConfigError(f"The model's preprocessing states no side of the input, but size {size!r}: give image_size.")
    side = int(_read_numbers(where, "size", stated)[0])
    if getattr(processor, "do_center_crop", False):
        crop = int(_read_numbers(where, "crop_size", dict(processor.crop_size).get("height"))[0])
        return image_size or crop, min(crop / side, 1.0)
    share = getattr(processor, "crop_pct", None)  # ConvNeXt: only below 384 pixels
    return image_size or side, share if share and side < UNCROPPED_FROM else None


def space_of(about: Mapping[str, Any]) -> tuple[LabelSpace, list[int]]:
    """Return the label space of the outputs, and for a detector each output's class, from 1 (0: no class)."""
    if about["task"] == "depth":
        return LabelSpace("depth", (), about["scale"]), []
    return torchvision_models.space_of(about["task"], about["classes"])


def run_model(model: Any, inputs: Tensor) -> Any:
    """Return the model's output; position embeddings are resampled to the size of the images where it can do that."""
    options = dict.fromkeys({RESAMPLES} & inspect.signature(model.forward).parameters.keys(), True)
    return model(pixel_values=inputs, **options)


class ClassificationAdapter(Adapter):
    """A classifier: logits (B, K) float32. Other tasks override `read`."""

    def run(self, inputs: Tensor) -> Tensor:
        return self.read(run_model(self.model, inputs), inputs.shape[-1])

    def read(self, output: Any, side: int) -> Tensor:
        """Return of the library's output for inputs of this side in pixels what the task's own head would give."""
        logits: Tensor = output.logits.float()
        return logits


class SegmentationAdapter(ClassificationAdapter):
    """A segmenter: logits (B, K, S/4, S/4) float32."""

    def read(self, output: Any, side: int) -> Tensor:
        return resize_to_stride(output.logits.float(), side)


class InverseDepthAdapter(ClassificationAdapter):
    """A model of relative depth: inverse depth (B, 1, S/4, S/4) float32, up to scale and shift."""

    def read(self, output: Any, side: int) -> Tensor:
        return resize_to_stride(output.predicted_depth.float()[:, None], side)


class MetricDepthAdapter(InverseDepthAdapter):
    """A model of metric depth: the logarithm of metres (B, 1, S/4, S/4) float32."""

    def read(self, output: Any, side: int) -> Tensor:
        return super().read(output, side).clamp(min=MIN_DEPTH_M).log()


class DetectionAdapter(Detector):
    """A detector with the library's post-processing, a method of its image processor."""

    def __init__(
        self, model: nn.Module, head: str, statistics: Statistics, class_of_output: Sequence[int], processor: Any
    ) -> None:
        super().__init__(model, head, statistics, class_of_output)
        self.post_process = processor.post_process_object_detection

    def detect(self, inputs: Tensor) -> list[dict[str, Tensor]]:
        output, side = run_model(self.model, inputs), inputs.shape[-1]
        output.logits, output.pred_boxes = output.logits.float(), output.pred_boxes.float()
        boxes: list[dict[str, Tensor]] = self.post_process(
            output, threshold=MIN_SCORE, target_sizes=[(side, side)] * len(inputs)
        )
        return boxes


def adapter_class(task: str, scale: str) -> type[ClassificationAdapter]:
    """Return the class of adapters for a task; `scale`: of depth, `relative` or `metric`."""
    if task == "depth":
        return {"relative": InverseDepthAdapter, "metric": MetricDepthAdapter}[scale]
    return SegmentationAdapter if task == "segmentation" else ClassificationAdapter


def build_predictor(folder: Path, about: Mapping[str, Any]) -> Predictor:
    """Build the predictor of the model in `folder`."""
    model, processor = fetch(str(folder), about["task"])
    space, class_of_output = space_of(about)
    head, statistics = about["head"], (about["mean"], about["std"])
    preprocessing = preprocessing_of(about)
    if about["task"] == "detection":
        detector = DetectionAdapter(model, head, statistics, class_of_output, processor)
        return Predictor(detector, {head: DetectedBoxes(space)}, preprocessing)
    adapter = adapter_class(about["task"], about["scale"])(model, head, statistics)
    return Predictor(adapter, {head: tasks.model(space)}, preprocessing)
