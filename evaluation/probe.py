"""What a probe is given, and what it makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pipeline.data.dataset import ImageDataset
from pipeline.models.encoder import Encoder
from pipeline.steps.runtime import Runtime


class LabelledFeatures(NamedTuple):
    """Features (N, D) float32 and the numbers of their classes (N,) int64, both on the host."""

    features: Tensor
    classes: Tensor


@dataclasses.dataclass(frozen=True)
class ProbeTask:
    """A classification of frozen features: what is known to learn from and to decide by, and how many classes there
    are. `encoder` and `images`, with labels under `classification`, are where the features to learn from come from;
    `scratch` is a folder for what a training leaves on its way.
    """

    train: LabelledFeatures
    val: LabelledFeatures
    classes: int
    seed: int
    encoder: Encoder
    images: ImageDataset
    scratch: Path
    runtime: Runtime


class ProbeResult(NamedTuple):
    """Features (N, D) -> probabilities (N, classes); and the settings that were decided on, as JSON."""

    classify: Callable[[Tensor], Tensor]
    settings: dict[str, Any]
