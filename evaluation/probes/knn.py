"""Weighted nearest neighbours (Wu et al., CVPR 2018), as DINO is measured (Caron et al., ICCV 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.probe import ProbeResult, ProbeTask

VERSION = 1
NEIGHBOURS, TEMPERATURE = 20, 0.07
ABOUT = f"{NEIGHBOURS} nearest neighbours by cosine, weighted by exp(cosine / {TEMPERATURE}), on whole images"
RANDOM = False
AT_ONCE = 1024


def fit(problem: ProbeTask) -> ProbeResult:
    """The classes that most of the weight of an image's nearest neighbours falls on."""
    import torch
    import torch.nn.functional as F

    from evaluation.probe import ProbeResult

    known, count = F.normalize(problem.train.features, dim=1), min(NEIGHBOURS, len(problem.train.features))
    marks = F.one_hot(problem.train.classes, problem.classes).float()

    def classify(features: Tensor) -> Tensor:
        pieces = F.normalize(features, dim=1).split(AT_ONCE)
        found = [(piece @ known.T).topk(count, dim=1) for piece in pieces]
        votes = [((cosines / TEMPERATURE).softmax(1).unsqueeze(2) * marks[near]).sum(1) for cosines, near in found]
        return torch.cat(votes)

    return ProbeResult(classify, {"neighbours": count})
