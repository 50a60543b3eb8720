"""Weighted k-nearest-neighbour classifier (Wu et al., CVPR 2018), with DINO's settings (Caron et al., ICCV 2021)."""

from __future__ import annotations

from evaluation.probe import ProbeData, ProbeResult
from tasks.classification.label import TaskLabel

VERSION = 1
READS = "vector"
LABEL = TaskLabel
ABOUT = "20 nearest neighbours by cosine, weighted by exp(cosine / 0.07), on whole images"
RANDOM = False


def fit(data: ProbeData) -> ProbeResult:
    """Return a classifier that votes among the nearest training images, weighted by similarity."""
    from pipeline.models.neighbors import NEIGHBORS, nearest_neighbors

    train = data.train
    classify = nearest_neighbors(train.features, train.classes, data.classes, data.device)
    return ProbeResult(classify, {"neighbours": min(NEIGHBORS, len(train.features))})
