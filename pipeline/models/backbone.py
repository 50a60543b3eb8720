"""Backbones from timm, under their own names and keys, with the feature maps they give.

The whole timm model is kept, without its classifier, so that `timm.create_model` loads what is exported.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, require_one_of

STRIDES = (8, 16, 32)
Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation per channel, for images in [0, 1]."""


class Backbone(nn.Module):
    """A timm model that turns normalised images (B, 3, S, S) into maps of stride 8, 16 and 32 (C3, C4, C5).

    Plain vision transformers have one stride: they give a single map (B, C, S/p, S/p), and `strides` says so.
    """

    def __init__(self, name: str, image_size: int) -> None:
        super().__init__()
        self.name = name
        self.model = create_backbone(name, image_size)
        feature_info: Any = self.model.feature_info
        stages = getattr(feature_info, "info", feature_info)
        info = [(entry["reduction"], entry["num_chs"]) for entry in stages]
        last = {reduction: (index, channels) for index, (reduction, channels) in enumerate(info)}
        strides = [stride for stride in STRIDES if stride in last]
        self.strides: list[int] = strides if len(strides) == len(STRIDES) else [info[-1][0]]
        self.channels: list[int] = [last[stride][1] for stride in self.strides]
        self._indices = [last[stride][0] for stride in self.strides]
        self._grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in self.modules())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return a map for each of `strides`."""
        # the CPU takes several times as long for bfloat16 gradients of grouped convolutions: these train in float32
        slow = self._grouped and self.training and images.device.type == "cpu"
        model: Any = self.model  # timm's models have methods that nn.Module does not declare
        with torch.autocast("cpu", enabled=False) if slow else contextlib.nullcontext():
            features: list[Tensor] = model.forward_intermediates(images, indices=self._indices, intermediates_only=True)
        return features


class Classifier(nn.Module):
    """A published timm classifier as a network of one head: uint8 images (B, 3, S, S) -> {head: logits (B, K)}."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, head: str, classes: int, statistics: Statistics) -> None:
        super().__init__()
        self.head = head
        self.model = timm.create_model(name, num_classes=classes)
        register_statistics(self, statistics)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {self.head: self.model((images - self.mean) / self.std).float()}


def register_statistics(module: nn.Module, statistics: Statistics) -> None:
    """Register statistics as buffers `mean` and `std`, (1, 3, 1, 1), for images in 0 to 255."""
    for name, values in zip(("mean", "std"), statistics, strict=True):
        module.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255)


def statistics(name: str) -> Statistics:
    """Return the statistics that timm states for the model."""
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    return tuple(config.mean), tuple(config.std)


def create_backbone(name: str, image_size: int) -> nn.Module:
    """Create the timm model without classifier and with random weights.

    Raises ConfigError if timm has no such model, with near names, or if it gives no feature maps.
    """
    check_model_name(name)
    model: nn.Module = timm.create_model(name, num_classes=0, **img_size_options(name, image_size))
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"Backbone {name!r} gives no intermediate feature maps; resnet18 or vit_tiny_patch16_224 do.")
    return model


@functools.cache
def img_size_options(name: str, image_size: int) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` for inputs of this side: none for convolutional networks, which take
    any size and refuse the argument; transformers have an embedding per position.
    """
    try:
        with torch.device("meta"):
            timm.create_model(name, img_size=image_size)
    except TypeError:
        return {}
    return {"img_size": image_size}


def check_model_name(name: str) -> None:
    """Raise ConfigError, with near names, unless timm has a model of this name."""
    if not timm.is_model(name):
        family = timm.list_models(f"*{name.partition('_')[0]}*")
        require_one_of(name, family or timm.list_models("resnet*"), "timm model")
