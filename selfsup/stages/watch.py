"""Whether features collapse: how far apart they are, and in how many directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.augment import View, view_image
from pipeline.decode import decode
from pipeline.loader import Library, stacked
from selfsup.parts.encoder import Encoder

SEEN, AT_ONCE = 512, 64
"""Images that a backbone is looked at by, at most, and in one pass."""
COLLAPSED = 0.02
"""A spread below which features can't tell images apart."""


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


def look(encoder: Encoder, images: Library, size: int) -> dict[str, float]:
    """`spread` and `rank` of what a backbone, where it is, makes of up to SEEN images, evenly spread over them all."""
    features = features_of(encoder, images, range(0, len(images), -(-len(images) // SEEN)), size)
    return {"spread": round(float(spread(features)), 4), "rank": round(float(effective_rank(features)), 2)}


@torch.inference_mode()
def features_of(encoder: Encoder, images: Library, chosen: Sequence[int], size: int) -> Tensor:
    """Features (N, D) float32, on the host, of these images of a library, whole and without any change; the backbone
    computes where it is, with its running statistics.
    """
    device, was_training = encoder.mean.device, encoder.training
    encoder.eval()
    parts = [
        encoder(_shown(images, chosen[start : start + AT_ONCE], size).to(device)).float().cpu()
        for start in range(0, len(chosen), AT_ONCE)
    ]
    encoder.train(was_training)
    return torch.cat(parts)


def _shown(images: Library, chosen: Sequence[int], size: int) -> Tensor:
    side = (size, size)
    shown = [view_image(decode(images.read(index)[1], at_least=side), View(), size) for index in chosen]
    return stacked(shown).float() / 255
