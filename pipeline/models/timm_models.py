"""timm's models by name: created without classifier, for images of a size."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn

from pipeline.errors import require_one_of

Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation per channel, for images in [0, 1]."""


def create_timm_model(name: str, image_size: int, drop_path: float = 0.0) -> nn.Module:
    """Create the timm model without classifier and with random weights, for images of any side if it supports that.

    `drop_path`: stochastic depth of a transformer's blocks, from 0 in the first to this in the last. Raises ConfigError
    if timm has no such model, with near names.
    """
    check_model_name(name)
    options: dict[str, Any] = img_size_options(name, image_size)
    if options:
        options["drop_path_rate"] = drop_path
        with contextlib.suppress(TypeError):
            flexible: nn.Module = timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)
            return flexible
    model: nn.Module = timm.create_model(name, num_classes=0, **options)
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


def statistics(name: str) -> Statistics:
    """Return the statistics that timm states for the model."""
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    return tuple(config.mean), tuple(config.std)
