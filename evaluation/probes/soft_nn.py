"""Soft nearest neighbours over all labelled images: the classifier whose likelihood SuNCEt raises (Assran et al., 2020,
eq. 1), as its authors evaluate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.probe import ProbeResult, ProbeTask

VERSION = 1
TEMPERATURE = 0.1
ABOUT = f"all labelled images vote for their class with exp(cosine / {TEMPERATURE}), on whole images"
RANDOM = False
AT_ONCE = 1024


def fit(problem: ProbeTask) -> ProbeResult:
    """The share of each class in the softmax of an image's cosines with all labelled ones."""
    import torch
    import torch.nn.functional as F

    from evaluation.probe import ProbeResult

    known = F.normalize(problem.train.features, dim=1)
    marks = F.one_hot(problem.train.classes, problem.classes).float()

    def classify(features: Tensor) -> Tensor:
        pieces = F.normalize(features, dim=1).split(AT_ONCE)
        return torch.cat([(piece @ known.T / TEMPERATURE).softmax(1) @ marks for piece in pieces])

    return ProbeResult(classify, {"temperature": TEMPERATURE})
