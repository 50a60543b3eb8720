"""Backbones of Hugging Face transformers, as DINOv2 or SigLIP: the vector and the map that they make of an image."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from pipeline.data.statistics import Statistics
from pipeline.errors import ConfigError, first_line
from pipeline.models.backbone import register_statistics
from pipeline.models.readout import Readout
from pipeline.storage.shortage import shortage_of
from teachers.models.transformers_models import (
    IMAGES,
    check_image_size,
    describe_input,
    load_config,
    load_network,
    load_part,
    run_model,
)

POOLER = "pooler"
"""Module of some models that makes a vector of tokens; published classifiers come without."""
EXAMPLES = "DINOv2, DINOv3, SigLIP, CLIP, ViT or ConvNeXt"
"""Models whose vector and map are defined, for messages."""
CLASS_TOKENS = 2
"""The most tokens of a model that are neither cells nor registers: of a class, and of a distilled one."""


class TransformersBackbone(nn.Module):
    """A model of the library that takes images alone: uint8 images (B, 3, S, S) -> their vectors (B, `width`).

    `image_size`: S, pixels; position embeddings are resampled to it. The vector is the library's `pooler_output`, or
    the mean of the cells where it has none. The map, (B, C, h, w), is its `last_hidden_state`: a convolutional
    network's last map, or a transformer's tokens on their grid, without those of class and registers.

    Raises ConfigError if the model has no vector and map of such images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, image_size: int, statistics: Statistics) -> None:
        super().__init__()
        self.model = model.eval()
        register_statistics(self, statistics)
        try:
            with torch.no_grad():
                vector, [cells] = self.readout(torch.full((1, 3, image_size, image_size), 128, dtype=torch.uint8))
        except Exception as error:  # models raise errors of any type for a size that they can't take
            if shortage_of(error):
                raise
            raise ConfigError(
                f"a model of type {model.config.model_type!r} has no vector and map of images of {image_size} x "
                f"{image_size} pixels ({first_line(error)}): {EXAMPLES} has, or, if the reason is the size, it may "
                "have them at another image_size."
            ) from error
        self.width = vector.shape[1]
        self.channels: tuple[int, ...] = (cells.shape[1],)

    def forward(self, images: Tensor) -> Tensor:
        """Return the vectors of the images (B, `width`)."""
        return self.readout(images).vector

    def readout(self, images: Tensor) -> Readout:
        """Return the vectors of the images, and their one map."""
        output = run_model(self.model, (images - self.mean) / self.std)
        cells = _cells(output, self.model.config, images.shape[-1])
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        vector = cells.flatten(2).mean(dim=2) if pooled is None else pooled.flatten(1)
        return Readout(vector, [cells])


def _cells(output: Any, config: Any, side: int) -> Tensor:
    """Return the map (B, C, h, w) of the library's output for square images of this side in pixels.

    Squares lie further apart than there are class tokens: the number of tokens tells their grid. Raises ValueError if
    that is not the grid of the patches, which only models that pool may merge.
    """
    hidden: Tensor = output.last_hidden_state
    if hidden.ndim == 4:
        return hidden
    tokens = hidden.shape[1] - (getattr(config, "num_register_tokens", None) or 0)
    grid = math.isqrt(tokens)
    patches = side // config.patch_size if isinstance(getattr(config, "patch_size", None), int) else None
    merges = getattr(output, "pooler_output", None) is not None
    if tokens - grid**2 > CLASS_TOKENS or (grid != patches and not merges):
        raise ValueError(f"its {tokens} tokens are not one for each of its {patches} x {patches} patches")
    return hidden[:, -(grid**2) :].transpose(1, 2).unflatten(2, (grid, grid))


def fetch(weights: str, task: str, image_size: int | None) -> tuple[TransformersBackbone, dict[str, Any]]:
    """Load a backbone from a folder or the hub; of a model of images and text, the part for images.

    Return with it the part of a teacher's `model.json` that says how it is built and what its input is. Raises
    ConfigError if there is no such model, or `TransformersBackbone` does; DataError if it lacks weights.
    """
    config = load_config(weights, task)
    part = _find_image_part(config, weights)
    asked = {"weights": weights, "task": task, "image_size": image_size}
    about = describe_input(load_part(weights, IMAGES, task), asked)
    check_image_size(config, about["size"])
    model = load_network(weights, part, task, optional=POOLER)
    about["config"] = json.loads(model.config.to_json_string())
    about["pooler"] = getattr(model, POOLER, None) is not None
    return TransformersBackbone(model, about["size"], (about["mean"], about["std"])), about


def _find_image_part(config: Any, weights: str) -> str:
    """Return the library's class for the part of a model that takes images. Raises ConfigError if it has none."""
    library: Any = transformers
    vision = getattr(config, "vision_config", config)
    part = library.MODEL_MAPPING.get(type(vision), None)
    forward = getattr(part, "forward", None)
    arguments = inspect.signature(forward).parameters if forward else {}
    required = {name for name, each in arguments.items() if each.default is each.empty} - {"self", "kwargs"}
    if "pixel_values" not in arguments or required - {"pixel_values"}:
        raise ConfigError(
            f"weights {weights!r} are of a model of type {config.model_type!r}, which has no part that takes images "
            f"of one size alone: {EXAMPLES} has."
        )
    return str(part.__name__)


def build(about: Mapping[str, Any]) -> TransformersBackbone:
    """Build the backbone of a teacher's `model.json`, with random weights in float32."""
    library: Any = transformers
    config = library.CONFIG_MAPPING[about["config"]["model_type"]].from_dict(about["config"])
    model = library.AutoModel.from_config(config, trust_remote_code=False).float()
    if hasattr(model, POOLER) and not about["pooler"]:
        setattr(model, POOLER, None)
    return TransformersBackbone(model, about["size"], (about["mean"], about["std"]))
