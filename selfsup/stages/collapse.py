"""Collapse of features: measure how far apart they are and in how many directions, before and after a training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.dataset import ImageDataset
from pipeline.models.backbone import Backbone
from pipeline.models.features import extract_features
from pipeline.steps.runtime import Runtime

MAX_IMAGES = 512
"""Images whose features are measured, at most."""
MIN_SPREAD = 0.02
"""Below this spread, features can't tell images apart."""
MIN_RANK_SHARE = 0.1
"""Below this share of the effective rank before the training, features have lost most of their information."""


def spread(features: Tensor) -> Tensor:
    """Return sqrt(D) times the mean standard deviation of features (B, D) of unit length: 0 if all are one vector, 1 if
    their directions are uniform.
    """
    unit = F.normalize(features.float(), dim=1)
    return unit.std(dim=0).mean() * unit.shape[1] ** 0.5


def effective_rank(features: Tensor) -> Tensor:
    """Return the effective rank of features (B, D), scaled to unit length and centred, from 1 to min(B - 1, D).

    The exponential of the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007).
    """
    unit = F.normalize(features.float(), dim=1)
    values = torch.linalg.svdvals(unit - unit.mean(dim=0))
    shares = values / values.sum().clamp_min(1e-12)
    return torch.special.entr(shares).sum().exp()


def is_collapsed(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Return True if a training collapsed the features to a point, or to a few directions.

    `before`, `after`: of `measure_features`. The second is dimensional collapse (Jing et al., ICLR 2022).
    """
    return after["spread"] < MIN_SPREAD or after["rank"] < MIN_RANK_SHARE * before["rank"]


def measure_features(backbone: Backbone, images: ImageDataset, runtime: Runtime) -> dict[str, float]:
    """Return `spread` and `rank` of a backbone's features, on its device, for images spread evenly over the set."""
    features = extract_features(backbone, images, range(0, len(images), -(-len(images) // MAX_IMAGES)), runtime)
    return {"spread": round(float(spread(features)), 4), "rank": round(float(effective_rank(features)), 2)}
