"""The encoder of self-supervised methods and probes: a timm backbone that gives one feature vector per image."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pipeline.models.backbone import Statistics, check_model_name, img_size_options, register_statistics


class Encoder(nn.Module):
    """A timm model without classifier: images (B, 3, S, S) in [0, 1] -> its pooled features (B, `width`).

    `size` is the side of the images it is meant for, pixels. Transformers take views of any side that is a multiple of
    their patches, convolutional networks of any side.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, image_size: int, statistics: Statistics) -> None:
        super().__init__()
        check_model_name(name)
        self.name, self.size = name, image_size
        self.model = _create_model(name, image_size)
        self.width = _feature_width(name, image_size)
        register_statistics(self, statistics)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model(self.normalize(images))
        return features

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images in [0, 1] for the timm model."""
        return (images * 255 - self.mean) / self.std

    def norm_layers(self) -> list[nn.Module]:
        """Return the normalisation layers."""
        kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
        return [module for module in self.model.modules() if isinstance(module, kinds)]

    def train_only_norms(self) -> None:
        """Freeze all but scales and shifts of normalisation layers (HPT-BN); running statistics are still updated."""
        self.model.requires_grad_(False)
        for norm in self.norm_layers():
            norm.requires_grad_(True)


@functools.cache
def _feature_width(name: str, image_size: int) -> int:
    """Return how many features a timm model gives: its `num_features` is not always the width of what comes out."""
    with torch.device("meta"):
        features: Tensor = _create_model(name, image_size).eval()(torch.empty(1, 3, image_size, image_size))
    return features.shape[1]


def _create_model(name: str, image_size: int) -> nn.Module:
    """Create the timm model without classifier, for images of any side if it supports that."""
    options: dict[str, Any] = img_size_options(name, image_size)
    if options:
        with contextlib.suppress(TypeError):
            flexible: nn.Module = timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)
            return flexible
    model: nn.Module = timm.create_model(name, num_classes=0, **options)
    return model
