"""Backbones: timm's models under their own names and keys, with the statistics that normalise their images.

The whole timm model is kept, without its classifier, so that `timm.create_model` loads what is exported.
"""

from __future__ import annotations

import contextlib
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.data.statistics import Statistics
from pipeline.models.gradient_checkpointing import checkpoint_blocks
from pipeline.models.readout import Readout, read, readout_info
from pipeline.models.timm_models import create_timm_classifier, create_timm_model


class Backbone(nn.Module):
    """A timm model without classifier: images (B, C, S, S), uint8 or float32 in [0, 1], -> their vectors (B, `width`).

    `size` is the side of the images it is meant for, pixels. Transformers take views of any side that is a multiple of
    their patches, convolutional networks of any side. Of other channels than 3, as many as there are `statistics`,
    images are float32 in the numbers of their files. `drop_path`: see `create_timm_model`. See
    `pipeline.models.readout` for what is read of a model.

    Example:
        backbone = Backbone("resnet50", 224, statistics("resnet50"))
        vector, maps = backbone.readout(images)  # (B, 2048), and maps of stride 8, 16 and 32
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, image_size: int, statistics: Statistics, drop_path: float = 0.0) -> None:
        super().__init__()
        self.name, self.size = name, image_size
        self.frozen = False
        bands = len(statistics[0])
        self.model = create_timm_model(name, image_size, drop_path, bands)
        self.width, self.strides, self.channels, self._indices = readout_info(name, image_size, bands)
        register_statistics(self, statistics)
        self._grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in self.modules())

    @property
    def image_channels(self) -> int:
        """Channels of its images; `channels` are those of its maps."""
        return self.mean.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Return the vectors of the images (B, `width`)."""
        with self._precision(images):
            vector: Tensor = self.model(self.normalize(images))
            return vector

    def readout(self, images: Tensor) -> Readout:
        """Return the vectors of the images, and a map for each of `strides`, of as many `channels`."""
        with self._precision(images):
            return read(self.model, self.normalize(images), self._indices)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images for the timm model."""
        return ((images * 255 if images.is_floating_point() else images) - self.mean) / self.std

    def norm_layers(self) -> list[nn.Module]:
        """Return the normalisation layers with a scale, of any kind: timm and torch name them so."""
        named = (module for module in self.model.modules() if "Norm" in type(module).__name__)
        return [module for module in named if isinstance(getattr(module, "weight", None), Tensor)]

    def train_only_norms(self) -> None:
        """Freeze all but scales and shifts of normalisation layers (HPT-BN); running statistics are still updated."""
        self.model.requires_grad_(False)
        for norm in self.norm_layers():
            norm.requires_grad_(True)

    def checkpoint_blocks(self) -> None:
        """Compute the blocks again in backward passes, to save memory; see `pipeline.models.gradient_checkpointing`.

        Does nothing to a frozen backbone. Raises ConfigError if timm does not tell the blocks of the model.
        """
        if not self.frozen:
            checkpoint_blocks(self.model, self.name)

    def freeze(self) -> None:
        """Keep its weights and running statistics as they are, whatever is trained around it."""
        self.requires_grad_(False)
        self.frozen = True
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Set training mode, as `nn.Module.train` does; a frozen backbone stays in eval mode."""
        return super().train(mode and not self.frozen)

    def _precision(self, images: Tensor) -> contextlib.AbstractContextManager[object]:
        """Return a context without autocast where the CPU is slow in bfloat16: gradients of grouped convolutions."""
        slow = self._grouped and self.training and images.device.type == "cpu"
        return torch.autocast("cpu", enabled=False) if slow else contextlib.nullcontext()


class Classifier(nn.Module):
    """A published timm classifier as a network of one head: uint8 images (B, 3, S, S) -> {head: logits (B, K)}.

    `image_size`: S, the side of its images in pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, head: str, classes: int, image_size: int, statistics: Statistics) -> None:
        super().__init__()
        self.head = head
        self.model = create_timm_classifier(name, classes, image_size)
        register_statistics(self, statistics)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {self.head: self.model((images - self.mean) / self.std).float()}

    def forward_with_vector(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the logits, and the vectors (B, D) that the model's last layer makes them of."""
        model: Any = self.model
        features = model.forward_features((images - self.mean) / self.std)
        return {self.head: model.forward_head(features).float()}, model.forward_head(features, pre_logits=True)

    def vector(self, images: Tensor) -> Tensor:
        """Return the vectors (B, D)."""
        return self.forward_with_vector(images)[1]


def register_statistics(module: nn.Module, statistics: Statistics) -> None:
    """Register statistics as buffers `mean` and `std`, (1, C, 1, 1), for images in 0 to 255."""
    for name, values in zip(("mean", "std"), statistics, strict=True):
        module.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1) * 255)
