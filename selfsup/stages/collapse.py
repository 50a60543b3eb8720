"""Whether features collapse: how far apart they are, and in how many directions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.dataset import ImageDataset
from pipeline.models.encoder import Encoder
from pipeline.models.features import features_of
from pipeline.steps.runtime import Runtime

SEEN = 512
"""Images that a backbone is looked at by, at most."""
COLLAPSED = 0.02
"""A spread below which features can't tell images apart."""
NARROWED = 0.1
"""A share of the effective rank of before, below which features have lost most of what they could tell."""


def spread(features: Tensor) -> Tensor:
    """The mean standard deviation of unit vectors (B, D), times sqrt(D): 0 where all are one vector, 1 where directions
    are drawn evenly.
    """
    unit = F.normalize(features.float(), dim=1)
    return unit.std(dim=0).mean() * unit.shape[1] ** 0.5


def effective_rank(features: Tensor) -> Tensor:
    """The exponential of the entropy of the normalised singular values of centred unit vectors (B, D) (Roy and
    Vetterli, EUSIPCO 2007): 1 where they vary along one direction, at most min(B - 1, D).
    """
    unit = F.normalize(features.float(), dim=1)
    values = torch.linalg.svdvals(unit - unit.mean(dim=0))
    shares = values / values.sum().clamp_min(1e-12)
    return torch.special.entr(shares).sum().exp()


def is_collapsed(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether a training has made features all alike, or alike but for a few directions (dimensional collapse: Jing et
    al., ICLR 2022), as `look` tells.
    """
    return after["spread"] < COLLAPSED or after["rank"] < NARROWED * before["rank"]


def look(encoder: Encoder, images: ImageDataset, runtime: Runtime) -> dict[str, float]:
    """`spread` and `rank` of what a backbone, where it is, makes of up to SEEN images, evenly spread over them all."""
    features = features_of(encoder, images, range(0, len(images), -(-len(images) // SEEN)), runtime)
    return {"spread": round(float(spread(features)), 4), "rank": round(float(effective_rank(features)), 2)}
