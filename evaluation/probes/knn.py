"""Weighted k-nearest-neighbour classifier (Wu et al., CVPR 2018), with DINO's settings (Caron et al., ICCV 2021)."""

from __future__ import annotations

from evaluation.probe import ProbeData, ProbeResult
from tasks.classification.label import TaskLabel

VERSION = 1
READS = "vector"
LABEL = TaskLabel
NEIGHBORS, TEMPERATURE = 20, 0.07
ABOUT = f"{NEIGHBORS} nearest neighbours by cosine, weighted by exp(cosine / {TEMPERATURE}), on whole images"
RANDOM = False
CHUNK = 1024
"""Images classified at once, to bound memory."""


def fit(data: ProbeData) -> ProbeResult:
    """Return a classifier that votes among the nearest training images, weighted by similarity."""
    import torch
    import torch.nn.functional as F

    train, count = F.normalize(data.train.features, dim=1), min(NEIGHBORS, len(data.train.features))
    one_hot = F.one_hot(data.train.classes, data.classes).float()

    def classify(features: torch.Tensor) -> torch.Tensor:
        chunks = F.normalize(features, dim=1).split(CHUNK)
        neighbors = [(chunk @ train.T).topk(count, dim=1) for chunk in chunks]
        votes = [
            ((cosines / TEMPERATURE).softmax(1).unsqueeze(2) * one_hot[rows]).sum(1) for cosines, rows in neighbors
        ]
        return torch.cat(votes)

    return ProbeResult(classify, {"neighbours": count})
