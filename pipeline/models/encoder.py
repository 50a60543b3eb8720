"""The backbone as self-supervised methods and probes see it: images in, a vector per image out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pipeline.models.backbone import check_name, register_statistics, size_options

Statistics = tuple[Sequence[float], Sequence[float]]


class Encoder(nn.Module):
    """A timm model without classifier: images (B, 3, S, S) in [0, 1] -> its pooled features (B, `width`).

    `size`: the side of images that it is meant for, pixels; transformers take views of any side that is a multiple of
    their patches. `statistics`: mean and standard deviation per channel, for images in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, image_size: int, statistics: Statistics) -> None:
        super().__init__()
        check_name(name)
        self.name, self.size = name, image_size
        self.model = _create(name, image_size)
        with torch.device("meta"):  # what a model says of its width is not always what comes out
            features = _create(name, image_size).eval()(torch.empty(1, 3, image_size, image_size))
        self.width: int = features.shape[1]
        register_statistics(self, statistics)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model(self.normalised(images))
        return features

    def normalised(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the timm model wants them."""
        return (images * 255 - self.mean) / self.std

    def norms(self) -> list[nn.Module]:
        """Its normalisation layers."""
        kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
        return [part for part in self.model.modules() if isinstance(part, kinds)]

    def train_norms_alone(self) -> None:
        """HPT-BN: nothing but the scales and shifts of normalisation layers has a gradient from here on; batch norms
        go on counting their running statistics in training.
        """
        self.model.requires_grad_(False)
        for norm in self.norms():
            norm.requires_grad_(True)

    @torch.no_grad()
    def reset(self, tensors: dict[str, Tensor]) -> None:
        """Start from these weights of the timm model, by its own names."""
        self.model.load_state_dict(tensors)


def _create(name: str, image_size: int) -> nn.Module:
    """The timm model without classifier, for images of other sides as well if it is one that can be asked for that."""
    options: dict[str, Any] = size_options(name, image_size)
    if options:
        with contextlib.suppress(TypeError):
            flexible: nn.Module = timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)
            return flexible
    model: nn.Module = timm.create_model(name, num_classes=0, **options)
    return model
