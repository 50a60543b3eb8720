"""Weights of timm models that nothing was learned by, in files."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def save_random_backbone(name: str, folder: Path) -> Path:
    """Write the weights of a timm model without classifier, the same each time, and return the file."""
    torch.manual_seed(0)
    file = folder / "backbone.safetensors"
    save_file(timm.create_model(name, num_classes=0).state_dict(), file)
    return file
