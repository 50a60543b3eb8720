"""Soft nearest-neighbour classifier over all labelled images (Assran et al., 2020, eq. 1), whose likelihood SuNCEt
maximizes; its authors evaluate with it.
"""

from __future__ import annotations

from evaluation.probe import ProbeData, ProbeResult
from tasks.classification.label import TaskLabel

VERSION = 1
READS = "vector"
LABEL = TaskLabel
TEMPERATURE = 0.1
ABOUT = f"all labelled images vote for their class with exp(cosine / {TEMPERATURE}), on whole images"
RANDOM = False
CHUNK = 1024
"""Images classified at once, to bound memory."""


def fit(data: ProbeData) -> ProbeResult:
    """Return a classifier that sums, by class, the softmax over cosines with all training images."""
    import torch
    import torch.nn.functional as F

    train = F.normalize(data.train.features, dim=1)
    one_hot = F.one_hot(data.train.classes, data.classes).float()

    def classify(features: torch.Tensor) -> torch.Tensor:
        chunks = F.normalize(features, dim=1).split(CHUNK)
        return torch.cat([(chunk @ train.T / TEMPERATURE).softmax(1) @ one_hot for chunk in chunks])

    return ProbeResult(classify, {"temperature": TEMPERATURE})
