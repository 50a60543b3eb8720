"""The interface of probes: what `fit` is given and what it returns. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.data.dataset import ImageDataset
    from pipeline.models.backbone import Backbone
    from pipeline.steps.runtime import Runtime


PENALTY_GRID = tuple(10.0**power for power in range(-4, 3))
"""C, the inverse of the L2 penalty, that logistic regressions choose from."""
MAX_ITERATIONS = 500
"""Iterations of L-BFGS of a logistic regression."""
MAX_MAP_IMAGES = 2000
"""Labelled images at most that a probe on maps learns from, and of a split `val` at most that it chooses by.

Their maps are kept in memory.
"""


class LabelledFeatures(NamedTuple):
    """Features (N, D) float32 and class ids (N,) int64, both on the CPU.

    Of labels of several classes per image, `classes` are the probabilities (N, K) float32, NaN for unknown.
    """

    features: Tensor
    classes: Tensor


@dataclasses.dataclass(frozen=True)
class ProbeData:
    """Frozen features with their classes: fit on `train`, choose settings on `val`.

    A probe is a module in `evaluation/probes/`: it has `READS = "vector"`, `VERSION`, `ABOUT` and `RANDOM`, the class
    `LABEL` of the labels that it can learn, and

        def fit(data: ProbeData) -> ProbeResult:
            return ProbeResult(lambda features: torch.ones(len(features), data.classes) / data.classes, {})
    """

    train: LabelledFeatures
    val: LabelledFeatures
    classes: int
    """Number of classes."""
    seed: int
    backbone: Backbone
    images: ImageDataset
    """The training images, with labels under the name of their task, for probes that train on augmented views."""
    scratch: Path
    """Folder for checkpoints."""
    runtime: Runtime

    @property
    def device(self) -> str:
        """The device that features are compared on."""
        from pipeline.training.device import find_device  # noqa: PLC0415 - a recipe is read without torch

        return find_device(self.runtime.device)


class ProbeResult(NamedTuple):
    """A classifier, features (N, D) -> probabilities (N, classes) on the CPU, and the chosen settings as JSON."""

    classify: Callable[[Tensor], Tensor]
    settings: dict[str, Any]
