"""What a recipe says of measuring: the student and its teachers, and backbones against each other. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from pipeline.errors import ConfigError, require_one_of
from pipeline.recipe.base import BaseConfig, NamedBackbone
from pipeline.recipe.stage import KEPT, PUBLISHED, SCRATCH, STUDENT, names_weights


def _amount(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 2
    if value != "all" and not whole and not (isinstance(value, float) and 0 < value < 1):
        raise ValueError(
            f"{value!r} is no amount: a number of labelled images from 2 on, a share such as 0.1, or all would work"
        )
    return value


def _once(values: list[Any]) -> list[Any]:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"{value!r} is there twice")
    return values


Amount = Literal["all"] | Annotated[int, Field(ge=2)] | Annotated[float, Field(gt=0, lt=1)]
"""So many labelled images, or such a share of them. The bounds are for editors; `_amount` tells what would work."""
Amounts = Annotated[list[Annotated[Amount, BeforeValidator(_amount)]], AfterValidator(_once), Field(min_length=1)]
UniqueItems = AfterValidator(_once)
"""Of a list: nothing is in it twice."""


class Measuring(BaseConfig):
    """How backbones are measured against each other."""

    probes: Annotated[list[str], UniqueItems] = []
    """How frozen features are measured, on the sets with class labels: `knn`, nearest neighbours; `soft_nn`, all
    labelled images by how near they are, as SuNCEt is measured; `linear`, a linear classifier; `linear_hpt`, the same
    as HPT trains it, for a GPU. The names of files in `evaluation/probes/`."""
    schedule: str = "quick"
    """How networks are fine-tuned: `quick`; `hpt`, as HPT does it; `suncet`, SuNCEt's for 1 % and 10 % of the labels.
    """
    labels: Amounts = ["all"]
    """Labelled images that probes and fine-tuning learn from: numbers, shares such as 0.01, or all."""
    seeds: int = Field(default=1, ge=1)
    """Runs of what is drawn at random, each with labels of its own."""
    corruptions: bool = False
    """Whether what was learned is measured on corrupted images as well."""


class EvaluateConfig(Measuring):
    """What is measured at the end."""

    splits: Literal["test", "val"] = "test"
    """Held-out split that is preferred; the other is used where a set lacks it."""
    sets: list[str] = []
    """Further sets to measure on: every teacher, and the student's head for it, whose task and classes a set shares."""
    probe_sets: Annotated[list[str], UniqueItems] | None = None
    """Sets that probes are for; null for all sets with class labels."""
    finetune: Annotated[list[str], UniqueItems] = []
    """Sets that networks are fine-tuned on, from every start, for each task that a set has labels of."""
    starts: list[str] | None = None
    """Backbones to measure: `scratch`, `student`, `stage.<name>`, `teacher.<name>`, or weights as a teacher's; null for
    scratch, the student and all stages."""
    image_size: int | None = Field(default=None, multiple_of=32, ge=32)
    """Side of the square input for backbones, pixels; null for the student's."""

    def backbone_starts(self, stages: Sequence[str]) -> list[str]:
        """The backbones to measure, each once; none if neither probes nor fine-tuning are asked for."""
        if not self.probes and not self.finetune:
            return []
        default = [SCRATCH, STUDENT, *(f"stage.{name}" for name in stages)]
        return list(dict.fromkeys(default if self.starts is None else self.starts))


class StartConfig(BaseConfig):
    """A backbone to measure: the step that leaves it, or else timm's name and where its weights are (null for none)."""

    name: str
    """What it is called where it is measured."""
    step: str | None = None
    """The step that leaves it."""
    backbone: str | None = None
    """Its timm name, without a step."""
    weights: str | None = None
    """Its weights, without a step."""
    image_size: int
    """Side of the square input, pixels."""

    def named_backbones(self) -> Sequence[NamedBackbone]:
        return [] if self.backbone is None else [NamedBackbone(self.backbone, self.image_size, self.weights)]


def start_of(said: str, steps: Sequence[str], backbone: str, image_size: int) -> StartConfig:
    """What a recipe names as a start; `steps`: those that leave a backbone. ConfigError lists what would do."""
    if said == SCRATCH:
        return StartConfig(name=said, backbone=backbone, image_size=image_size)
    if not names_weights(said):
        return StartConfig(name=said, step=require_one_of(said, [*steps, *KEPT], "start"), image_size=image_size)
    name = PUBLISHED if said == PUBLISHED else re.sub(r"\W+", "_", PurePath(said).stem)
    return StartConfig(name=name, backbone=backbone, weights=said, image_size=image_size)


def check_names(starts: Sequence[StartConfig]) -> None:
    """Raise ConfigError if two starts would be called alike."""
    for number, start in enumerate(starts):
        for other in starts[:number]:
            if start.name == other.name:
                raise ConfigError(
                    f"evaluate.starts: {other.weights or other.name!r} and {start.weights or start.name!r} would both "
                    f"be called {start.name!r}: rename the file."
                )
