"""Soft nearest-neighbour classifier on the backbone's vector, the form of SuNCEt's loss (Assran et al., 2020, eq. 1).

The loss, and the authors' own evaluation, take the vectors of the projection head.
"""

from __future__ import annotations

from evaluation.probe import ProbeData, ProbeResult
from tasks.classification.label import TaskLabel

VERSION = 1
READS = "vector"
LABEL = TaskLabel
TEMPERATURE = 0.1
ABOUT = f"all images learned from vote for their class with exp(cosine / {TEMPERATURE}), on whole images"
RANDOM = False
CHUNK = 1024
"""Images classified at once, to bound memory."""


def fit(data: ProbeData) -> ProbeResult:
    """Return a classifier that sums, by class, the softmax over cosines with all training images."""
    import torch
    import torch.nn.functional as F

    from pipeline.models.precision import exact_products

    train = F.normalize(data.train.features.to(data.device), dim=1)
    one_hot = F.one_hot(data.train.classes.to(data.device), data.classes).float()

    def classify(features: torch.Tensor) -> torch.Tensor:
        chunks = F.normalize(features, dim=1).split(CHUNK)
        with exact_products():
            votes = [(chunk.to(data.device) @ train.T / TEMPERATURE).softmax(1) @ one_hot for chunk in chunks]
        return torch.cat(votes).cpu()

    return ProbeResult(classify, {"temperature": TEMPERATURE})
