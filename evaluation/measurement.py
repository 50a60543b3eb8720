"""The records that measurements of backbones leave in `measured.json`. No torch.

A record says by which protocol, on which images, with how many labels and which seed a number came about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.recipe.evaluation import Amount

FILE = "measured.json"
CLEAN, ALL = "none", "all"
"""What records say of images that are as they are, and of the mean over all corruptions."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A number, and how it came about.

    `labels` of `asked` images with a label were learned from (those that decide included); `n` images were measured on.
    `steps`, `images` and `seconds` are what learning took, None where nothing was trained step by step.
    """

    start: str
    backbone: str
    protocol: str
    about: str
    dataset: str
    task: str
    split: str
    n: int
    asked: Amount
    labels: int
    seed: int
    metric: str
    better: str
    value: float
    corruption: str = CLEAN
    steps: int | None = None
    images: int | None = None
    seconds: float | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def best_of(better: str) -> Callable[..., Any]:
    """`max`, or `min` for a metric of which less is better: `better` is what its records say."""
    return max if better == "higher" else min
