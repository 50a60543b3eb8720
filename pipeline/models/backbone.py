"""Backbones from timm, under their own names and with their own keys, and the feature maps they give.

The whole timm model is kept (without its classifier), so that what is exported is what `timm.create_model` loads.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, DataError, require_one_of
from pipeline.models.checkpoint import read_tensors
from pipeline.models.weights import find_weights
from pipeline.recipe.stage import PUBLISHED

LEVELS = (8, 16, 32)


class Backbone(nn.Module):
    """A timm model that turns images (B, 3, S, S), normalised, into maps of stride 8, 16 and 32 (C3, C4, C5).

    Plain vision transformers have one stride: they give a single map (B, C, S/p, S/p), and `strides` says so.
    """

    def __init__(self, name: str, image_size: int) -> None:
        super().__init__()
        self.name = name
        self.model = create(name, image_size)
        info = [(entry["reduction"], entry["num_chs"]) for entry in _feature_info(self.model)]
        last = {reduction: (index, channels) for index, (reduction, channels) in enumerate(info)}
        wanted = [stride for stride in LEVELS if stride in last]
        self.strides: list[int] = wanted if len(wanted) == len(LEVELS) else [info[-1][0]]
        self.channels: list[int] = [last[stride][1] for stride in self.strides]
        self._indices = [last[stride][0] for stride in self.strides]
        self._grouped = any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in self.modules())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Training with grouped convolutions on the CPU stays in float32: their bfloat16 gradients take several times
        as long.
        """
        slow = self._grouped and self.training and images.device.type == "cpu"
        model: Any = self.model  # timm's models have methods that nn.Module does not state
        with torch.autocast("cpu", enabled=False) if slow else contextlib.nullcontext():
            features: list[Tensor] = model.forward_intermediates(images, indices=self._indices, intermediates_only=True)
        return features


class Classifier(nn.Module):
    """A whole published timm classifier as a network of one head: uint8 images (B, 3, S, S) -> {head: logits (B, K)}.

    `statistics` are mean and standard deviation per channel, for images in [0, 1]; they travel with it as buffers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, head: str, classes: int, statistics: tuple[Sequence[float], Sequence[float]]) -> None:
        super().__init__()
        self.head = head
        self.model = timm.create_model(name, num_classes=classes)
        register_statistics(self, statistics)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {self.head: self.model((images - self.mean) / self.std).float()}


def register_statistics(module: nn.Module, found: tuple[Sequence[float], Sequence[float]]) -> None:
    """Mean and standard deviation of images in [0, 1] as the buffers `mean` and `std`, for images in 0 to 255."""
    for name, values in zip(("mean", "std"), found, strict=True):
        module.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255)


def create(name: str, image_size: int) -> nn.Module:
    """The timm model `name` without classifier and without weights. ConfigError lists near names if there is none."""
    check_name(name)
    model: nn.Module = timm.create_model(name, num_classes=0, **size_options(name, image_size))
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"Backbone {name!r} gives no intermediate feature maps; resnet18 or vit_tiny_patch16_224 do.")
    return model


@functools.cache
def size_options(name: str, image_size: int) -> dict[str, Any]:
    """What `timm.create_model` has to be told for inputs of this side: transformers have an embedding per position,
    convolutional networks take any size and don't know the argument.
    """
    try:
        with torch.device("meta"):
            timm.create_model(name, img_size=image_size)
    except TypeError:
        return {}
    return {"img_size": image_size}


def check_name(name: str) -> None:
    """Raise ConfigError, with near names, unless timm has a model of this name."""
    if not timm.is_model(name):
        require_one_of(
            name, timm.list_models(f"*{name.partition('_')[0]}*") or timm.list_models("resnet*"), "timm model"
        )


def check_backbone(name: str, image_size: int, weights: str | None) -> None:
    """Raise ConfigError if there is no such backbone, it gives no feature maps, or its weights are not there or are
    those of another model.
    """
    with torch.device("meta"):  # no memory, no arithmetic
        model = create(name, image_size)
    if weights and weights != PUBLISHED:
        fitting(model, name, weights)


def check_classifier(name: str, classes: int, weights: str) -> None:
    """Raise ConfigError if there is no such timm classifier, or its weights are not there or are those of another."""
    check_name(name)
    if weights != PUBLISHED:
        with torch.device("meta"):
            model: nn.Module = timm.create_model(name, num_classes=classes)
        fitting(model, name, weights)


def statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, for images in [0, 1], that timm states for the backbone."""
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    return tuple(config.mean), tuple(config.std)


def load_weights(model: nn.Module, name: str, where: str, num_classes: int = 0) -> None:
    """Load published weights into a timm model: see `find_weights`; `timm` downloads what timm publishes for it.

    Embeddings of positions are resampled to the model's own grid. ConfigError if they are those of another model.
    """
    if where == PUBLISHED:
        published = timm.create_model(name, pretrained=True, num_classes=num_classes).state_dict()
        model.load_state_dict(resampled(model, published, f"{where}, for a {name!r}"))
    else:
        model.load_state_dict(fitting(model, name, where))


def fitting(model: nn.Module, name: str, where: str) -> dict[str, Tensor]:
    """The weights of a file (see `find_weights`) for a model called `name`, which may be on the meta device: what is
    only compared is not read from the disk. ConfigError if they are those of another model.
    """
    weights = read_weights(find_weights(where))
    try:
        return resampled(model, weights, f"{where}, for a {name!r}")
    except DataError as error:
        raise ConfigError(f"{error} Name weights of a {name!r}, or the model that these are of.") from error


def resampled(model: nn.Module, weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """`match`, with embeddings of positions resampled to the model's own grid."""
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is not None and set(model.state_dict()) <= set(weights):
        try:
            weights = adapt(weights, model)
        except Exception as error:  # timm's filters take it that the weights are the model's
            raise DataError(f"{source}: not weights of this model, timm can't use them ({error}).") from error
    return match(model, weights, source)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a PyTorch checkpoint; nothing in the file is executed. Of tensors that
    are not looked at, nothing is read but the shape, unless the checkpoint is of PyTorch's old format.
    """
    if not path.exists():
        raise DataError(f"{path}: no such weights file.")
    if path.suffix == ".safetensors":
        return read_tensors(path)[1]
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or harmful file makes torch's reader raise whatever it meets
        raise DataError(f"{path}: not readable as weights alone ({str(error).splitlines()[0]}).") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}


def match(model: nn.Module, weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights under `model`'s own names: by name, or in order if the file names its tensors in another way.

    In order only if the shapes agree one by one from the first tensor on. A classifier in the file that the model
    does not have is left out. DataError names the first tensor that does not fit, or that the model lacks in a block:
    weights of a deeper model are not cut short.
    """
    own = model.state_dict()
    taken = {name: name for name in own} if set(own) <= set(weights) else _in_order(own, weights, source)
    for name, theirs in taken.items():
        if weights[theirs].shape != own[name].shape:
            shapes = f"{tuple(weights[theirs].shape)}, the model needs {tuple(own[name].shape)}"
            raise DataError(f"{source}: {name} is {shapes}.")
    used, blocks = set(taken.values()), {_unnumbered(theirs) for theirs in taken.values()}
    more = [name for name in weights if name not in used and _unnumbered(name) in blocks]
    if more:
        raise DataError(f"{source}: not weights of this model: its blocks lack {len(more)} tensors, first {more[0]!r}.")
    return {**own, **{name: weights[theirs] for name, theirs in taken.items()}}


def _in_order(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> dict[str, str]:
    """By the model's names, those of a file that calls them otherwise. DataError if the file has too few."""
    names, theirs = ([name for name, one in each.items() if not _is_counter(one)] for each in (own, weights))
    if len(theirs) < len(names):
        missing = sorted(set(own) - set(weights))
        raise DataError(f"{source}: not weights of this model: {len(missing)} tensors missing, first {missing[0]!r}.")
    return dict(zip(names, theirs, strict=False))


def _unnumbered(name: str) -> str:
    """A tensor's name without the numbers of the blocks that it is in: the same for all blocks alike."""
    return re.sub(r"\.\d+(?=\.)", "", name)


def _is_counter(tensor: Tensor) -> bool:
    """Whether it is a batch norm's count of batches, which some files hold and some don't."""
    return tensor.ndim == 0 and not tensor.is_floating_point()


def _feature_info(model: nn.Module) -> list[dict[str, Any]]:
    info: Any = model.feature_info
    return list(getattr(info, "info", info))
