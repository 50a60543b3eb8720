"""timm's models by name: created without classifier, for images of a size."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.data.bands import RGB
from pipeline.data.statistics import Statistics
from pipeline.errors import require_one_of

# timm takes seconds to load, for it loads torchvision. It is in the functions that need it: a recipe with stages is
# read, and its run planned, without it.
# ruff: noqa: PLC0415


def create_timm_model(name: str, image_size: int, drop_path: float = 0.0, channels: int = RGB) -> nn.Module:
    """Create the timm model without classifier and with random weights, for images of any side if it supports that.

    `drop_path`: stochastic depth of its blocks, from 0 in the first to this in the last; models with batch norms, as
    convolutional networks are, and those of timm that have none go without. `channels`: those of the images. Raises
    ConfigError if timm has no such model, with near names.
    """
    check_model_name(name)
    if drop_path:
        with contextlib.suppress(TypeError):
            model = _create(name, image_size, in_chans=channels, drop_path_rate=drop_path)
            if not any(isinstance(module, _BatchNorm) for module in model.modules()):
                return model
    return _create(name, image_size, in_chans=channels)


def create_timm_classifier(name: str, classes: int, image_size: int | None = None) -> nn.Module:
    """Create the timm model with its classifier and with random weights, as `create_timm_model` does.

    `image_size`: side of the images, pixels; None for the model's own. Raises ConfigError if timm has no such model.
    """
    check_model_name(name)
    return _create(name, image_size, num_classes=classes)


def _create(name: str, image_size: int | None, **more: Any) -> nn.Module:
    import timm

    sized = {} if image_size is None else img_size_options(name, image_size)
    options: dict[str, Any] = {"num_classes": 0, **sized, **more}
    if "img_size" in options:
        with contextlib.suppress(TypeError):
            flexible: nn.Module = timm.create_model(name, dynamic_img_size=True, **options)
            return flexible
    model: nn.Module = timm.create_model(name, **options)
    return model


@functools.cache
def img_size_options(name: str, image_size: int) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` for inputs of this side: none for convolutional networks, which take
    any size and refuse the argument; transformers have an embedding per position.
    """
    import timm

    try:
        with torch.device("meta"):
            timm.create_model(name, img_size=image_size)
    except TypeError:
        return {}
    return {"img_size": image_size}


def check_model_name(name: str) -> None:
    """Raise ConfigError, with near names, unless timm has a model of this name and, after a dot, this tag."""
    import timm

    architecture, dot, _ = name.partition(".")
    if not timm.is_model(name):
        family = timm.list_models(f"*{name.partition('_')[0]}*")
        require_one_of(name, family or timm.list_models("resnet*"), "timm model")
    elif dot and not _has_tag(name):
        require_one_of(name, [architecture, *timm.list_pretrained(f"{architecture}.*")], "timm model")


def _has_tag(name: str) -> bool:
    """Return True if timm knows the tag of a model's name; it does not need to have weights for it."""
    import timm

    try:
        return timm.get_pretrained_cfg(name) is not None
    except RuntimeError:
        return False


def statistics(name: str, channels: int = RGB) -> Statistics:
    """Return the statistics that timm states for the model; of images of other `channels` than 3 those that change no
    number. Raises ConfigError if timm has no such model.
    """
    import timm

    check_model_name(name)
    if channels != RGB:
        return (0.0,) * channels, (1.0,) * channels
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    return tuple(config.mean), tuple(config.std)
