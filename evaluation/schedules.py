"""Fine-tuning schedules by name. Each has a version, which goes with every number measured by it. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.recipe.augment import AugmentConfig

CROP_AND_FLIP = AugmentConfig(area=0.08, brightness=0, contrast=0, saturation=0)
FEW_LABELS = 0.05
"""Share of the labels below which SuNCEt trains twice as long."""
Settings = Mapping[str, Any]
STEPS, EPOCHS, BATCH = 300, 10, 16
"""The quick schedule takes STEPS steps or EPOCHS epochs, whichever is longer."""


@dataclasses.dataclass(frozen=True)
class FinetuneSchedule:
    """A way to fine-tune, with the settings to choose from on validation images."""

    version: int
    about: str
    grid: Callable[[int, int], Sequence[Settings]]
    """(number of training images, number of all labelled images) -> settings of `FitConfig` to try."""
    augment: AugmentConfig
    blank_head: bool = False
    """True to start linear classifiers from zeros."""


def _quick(images: int, total: int) -> Sequence[Settings]:
    steps = max(STEPS, EPOCHS * images // BATCH)
    return [{"batch": BATCH, "steps": steps, "lr": lr} for lr in (1e-3, 3e-4)]


def _hpt(images: int, total: int) -> Sequence[Settings]:
    common = {"optimizer": "sgd", "batch": 256, "weight_decay": 0.0, "warmup": 0.0, "clip": None}
    lengths: Sequence[Settings] = [{"steps": 2500}, {"epochs": 90}]
    return [
        {**common, "lr": 100 * lr, "backbone_lr": 0.01, "drops": (1 / 3, 2 / 3), **length}
        for lr in (0.01, 0.001)
        for length in lengths
    ]


def _suncet(images: int, total: int) -> Sequence[Settings]:
    common = {"optimizer": "sgd", "nesterov": True, "batch": 256, "weight_decay": 0.0, "warmup": 0.0, "clip": None}
    return [{**common, "lr": 0.05, "epochs": 60 if images < FEW_LABELS * total else 30}]


SCHEDULES = {
    "quick": FinetuneSchedule(
        1,
        f"all weights, AdamW, {STEPS} steps of {BATCH} images or {EPOCHS} epochs if that is more, cosine, learning "
        "rate 0.001 or 0.0003, random crops, flips and colours",
        _quick,
        AugmentConfig(),
    ),
    "hpt": FinetuneSchedule(
        1,
        "all weights, SGD, batch 256, learning rate 0.01 or 0.001 and a hundred times that for the head, 2,500 steps "
        "or 90 epochs, a tenth after one and two thirds, no weight decay, random crops and flips (Reed et al., 2021)",
        _hpt,
        CROP_AND_FLIP,
    ),
    "suncet": FinetuneSchedule(
        2,
        "all weights, SGD with Nesterov momentum, learning rate 0.05 for each 256 images, cosine, 60 epochs for less "
        "than 5 % of the labels, else 30, no weight decay, a blank linear head, random crops and flips "
        "(Assran et al., 2020)",
        _suncet,
        CROP_AND_FLIP,
        blank_head=True,
    ),
}
