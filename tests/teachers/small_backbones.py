"""Tiny backbones of Hugging Face transformers with random weights, saved as publishers do, made without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.teachers.small_zeroshot import clip, tower

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

SIDE, PATCH, WIDTH = 64, 16, 16
"""Pixels of an image and of a patch, and the numbers of a vector."""


def vision(**more: Any) -> dict[str, Any]:
    return tower(image_size=SIDE, patch_size=PATCH, **more)


def levels() -> dict[str, Any]:
    return {"hidden_sizes": [8, 8, 8, WIDTH], "depths": [1] * 4}


MAKERS: dict[str, Callable[[], Any]] = {
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**vision())),
    "dinov3": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(num_register_tokens=4, **vision())),
    "dinov3_convnext": lambda: transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig(**levels())),
    "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision())),
    "clip": lambda: clip()[0],
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**vision())),
    "vit_classifier": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**vision())),
    "convnext": lambda: transformers.ConvNextModel(transformers.ConvNextConfig(**levels())),
    "vit_mae": lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**vision())),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**tower(vocab_size=30))),
}
"""A small model by its name here."""


def random_backbone(name: str) -> Any:
    """Return a tiny model whose numbers differ from image to image and from cell to cell."""
    torch.manual_seed(0)
    model = MAKERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2).add_(torch.randn_like(parameter), alpha=0.1)  # some are 0 at first
    return model.eval()


def processor() -> Any:
    """Return what prepares images for all of them, with statistics of its own."""
    return transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.4] * 3, resample=3)


def save_backbone(name: str, folder: Path) -> Path:
    """Save a model and its image processor as publishers do; return their folder."""
    random_backbone(name).save_pretrained(folder / name)
    processor().save_pretrained(folder / name)
    return folder / name
