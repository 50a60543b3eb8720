"""Weighted k-nearest-neighbour classification of frozen features (Wu et al., CVPR 2018), with DINO's settings."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.precision import exact_products

NEIGHBORS, TEMPERATURE = 20, 0.07
"""Of DINO (Caron et al., ICCV 2021)."""
CHUNK = 1024
"""Images classified at once, to bound memory."""


def nearest_neighbors(features: Tensor, classes: Tensor, count: int, device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """Return a function from features (M, D) to class probabilities (M, `count`), computed on the device.

    The NEIGHBORS nearest of the known `features` (N, D) by cosine vote for their `classes` (N,), weighted by
    exp(cosine / TEMPERATURE).
    """
    known, number = F.normalize(features.to(device), dim=1), min(NEIGHBORS, len(features))
    one_hot = F.one_hot(classes.to(device), count).float()

    def classify(unknown: Tensor) -> Tensor:
        chunks = F.normalize(unknown, dim=1).split(CHUNK)
        with exact_products():
            found = [(chunk.to(device) @ known.T).topk(number, dim=1) for chunk in chunks]
        votes = [((cosines / TEMPERATURE).softmax(1).unsqueeze(2) * one_hot[rows]).sum(1) for cosines, rows in found]
        return torch.cat(votes).cpu()

    return classify
