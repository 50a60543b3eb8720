"""The recipe's `evaluate` section: measure the student, its teachers, and backbones against each other. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.errors import ConfigError, require_one_of
from pipeline.recipe.base import BaseConfig, NamedBackbone, UniqueItems
from pipeline.recipe.stage import PUBLISHED, RESERVED_STARTS, SCRATCH, STUDENT, names_weights


def _amount(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 2
    if value != "all" and not whole and not (isinstance(value, float) and 0 < value < 1):
        raise ValueError(
            f"{value!r} is no amount: a number of labelled images from 2 on, a share such as 0.1, or all would work"
        )
    return value


Amount = Literal["all"] | Annotated[int, Field(ge=2)] | Annotated[float, Field(gt=0, lt=1)]
"""A number of labelled images, a share of them, or all. The bounds are for editors; `_amount` has the message."""
Amounts = Annotated[list[Annotated[Amount, BeforeValidator(_amount)]], UniqueItems, Field(min_length=1)]


class MeasurementConfig(BaseConfig):
    """The measurement of backbones: the keys that `evaluate` and `compare` share."""

    probes: Annotated[list[str], UniqueItems] = []
    """Models that learn on the frozen backbone, by the names of files in `evaluation/probes/`. For classes: `knn`
    (nearest neighbours), `soft_nn` (all labelled images, weighted by distance, as in SuNCEt), `linear` (a linear
    classifier), `linear_hpt` (the same, trained as in HPT, for a GPU). For several classes per image:
    `linear_multilabel`. For segmentation, depth, normals and regression: `linear_dense` (a linear layer on its maps).
    For boxes: `detector`."""
    schedule: str = "quick"
    """Schedule of fine-tuning: `quick`, `hpt` (HPT's), or `suncet` (SuNCEt's for 1 % and 10 % of the labels)."""
    labels: Amounts = ["all"]
    """Amounts of labelled images to learn from: numbers, shares such as 0.01, or all."""
    seeds: int = Field(default=1, ge=1)
    """Repetitions of everything random, each with its own draw of labels."""
    corruptions: bool = False
    """True to measure on corrupted images as well."""


class EvaluateConfig(MeasurementConfig):
    """The measurements at the end of a run."""

    splits: Literal["test", "val"] = "test"
    """Held-out split to measure on; the other one where a set lacks it."""
    sets: list[str] = []
    """Further sets to measure on, for teachers (and their heads of the student) with the same task and classes."""
    probe_sets: Annotated[list[str], UniqueItems] | None = None
    """Sets to probe on; null for all sets with labels that the probes learn from."""
    finetune: Annotated[list[str], UniqueItems] = []
    """Sets to fine-tune on, from every start, for each task that a set has labels for."""
    starts: list[str] | None = None
    """Backbones to measure: `scratch`, `student`, `stage.<name>`, `teacher.<name>`, or weights as a teacher names them;
    null for scratch, the student and all stages. What the student starts from, `student.weights` or random weights, is
    always measured as well."""
    image_size: int | None = Field(default=None, multiple_of=32, ge=32)
    """Side of the square input for backbones, pixels; null for the student's."""

    def backbone_starts(self, stages: Sequence[str]) -> list[str]:
        """Return the names of the backbones to measure; none without probes and fine-tuning."""
        if not self.probes and not self.finetune:
            return []
        default = [SCRATCH, STUDENT, *(f"stage.{name}" for name in stages)]
        return list(dict.fromkeys(default if self.starts is None else self.starts))


class StartConfig(BaseConfig):
    """A backbone to start from: the step that leaves it, or a timm model and its weights."""

    name: str
    """Its name in tables."""
    step: str | None = None
    """The step that leaves it; None for a timm model."""
    backbone: str | None = None
    """Its timm name; None if a step leaves it."""
    weights: str | None = None
    """Its weights; None for random ones, or if a step leaves it."""
    image_size: int
    """Side of the square input, pixels."""

    def named_backbones(self) -> Sequence[NamedBackbone]:
        return [] if self.backbone is None else [NamedBackbone(self.backbone, self.image_size, self.weights)]


def start_of(start: str, steps: Sequence[str], backbone: str, image_size: int) -> StartConfig:
    """Return the start that a recipe names, given the `steps` that leave a backbone. ConfigError lists the choices."""
    if start == SCRATCH:
        return StartConfig(name=start, backbone=backbone, image_size=image_size)
    if not names_weights(start):
        step = require_one_of(start, [*steps, *RESERVED_STARTS], "start")
        return StartConfig(name=start, step=step, image_size=image_size)
    name = PUBLISHED if start == PUBLISHED else re.sub(r"\W+", "_", PurePath(start).stem)
    return StartConfig(name=name, backbone=backbone, weights=start, image_size=image_size)


def check_names(starts: Sequence[StartConfig]) -> None:
    """Raise ConfigError if two starts have the same name."""
    named: dict[str, StartConfig] = {}
    for start in starts:
        other = named.setdefault(start.name, start)
        if other is not start:
            raise ConfigError(
                f"evaluate.starts: {other.weights or other.name!r} and {start.weights or start.name!r} would both "
                f"be called {start.name!r}: rename the file."
            )
