"""What a recipe says of a self-supervised stage. No torch; what a method adds is in its own file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.errors import ConfigError, require_one_of
from pipeline.recipe.base import NAME, BaseConfig, FitConfig, Name

STUDENT, SCRATCH, PUBLISHED = "student", "scratch", "timm"
"""What a stage may start from, beside other stages and weights."""
KEPT = (STUDENT, SCRATCH, PUBLISHED)
COMPARED = "compare_"
"""Before the names of stages that a comparison is made of."""
Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


def names_weights(start: str) -> bool:
    """Whether a start is published weights, or some in a file: what can't be the name of a step that leaves a backbone.
    A file `teacher.bin` in the working folder is called `./teacher.bin`.
    """
    return start == PUBLISHED or not (re.fullmatch(NAME, start) or re.fullmatch(r"(stage|teacher)\.\w+", start))


class PolicyConfig(BaseConfig):
    """How far views may go. What is not given is the method's own."""

    area: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] | None = None
    """Smallest and largest share of the image that a view covers."""
    flip: Probability | None = None
    """Probability of mirroring left to right."""
    jitter: Probability | None = None
    """Probability that brightness, contrast, saturation and hue change."""
    brightness: Strength | None = None
    """Largest relative change, either way."""
    contrast: Strength | None = None
    """Largest relative change, either way."""
    saturation: Strength | None = None
    """Largest relative change, either way."""
    hue: Annotated[float, Field(ge=0, le=0.5)] | None = None
    """Largest turn, either way, as a share of the whole circle."""
    grayscale: Probability | None = None
    """Probability of losing all colour."""
    blur: Probability | None = None
    """Probability of a Gaussian blur, of a standard deviation from 0.1 to 2 pixels."""
    solarize: Probability | None = None
    """Probability of inverting what is brighter than the middle."""


class LabelledConfig(BaseConfig):
    """The labelled images beside the unlabelled ones, as in SuNCEt."""

    method: Literal["suncet", "supcon"] = "suncet"
    """The loss: the sum over an image's class inside the logarithm, or outside of it."""
    per_class: int | None = Field(default=None, ge=2)
    """Labelled images of each class that are used at all; null for all there are."""
    classes: int | None = Field(default=None, ge=2)
    """Classes in a step; null for all. Must divide their number."""
    images: int = Field(default=4, ge=2)
    """Images of each of these classes in a step, one view each."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the softmax over cosines."""
    until: float = Field(default=1.0, gt=0, le=1)
    """Share of the steps after which there are no labelled images any more."""


class StageConfig(FitConfig):
    """A self-supervised pretraining run: what it starts from, on which images, and how far it goes."""

    name: Name
    """What the stage is called."""
    method: str
    """How it learns: the name of a file in `selfsup/`."""
    data: list[str] = Field(min_length=1)
    """The sets whose training images it sees, each image once."""
    start: str | None = None
    """What the backbone starts from: `student`, the name of a stage before this one, `scratch`, or weights as a
    teacher's; null for the stage before this one, or else the student."""
    backbone: str | None = None
    """Any timm model, for `scratch` and weights; null for the student's."""
    image_size: int | None = Field(default=None, multiple_of=16, ge=16)
    """Side of the large views, pixels; null for what it starts from."""
    trainable: Literal["all", "norm"] = "all"
    """What of the backbone is trained: all of it, or only its normalisation layers (HPT-BN)."""
    statistics: Literal["data", "backbone"] = "data"
    """Mean and standard deviation that images are normalised by: those of the stage's own images, or the backbone's."""
    share: Share = 1.0
    """Share of the images that is used: a smaller one is a part of a larger one."""
    long_tail: Share | None = None
    """Thins out the classes of its images exponentially, in their order, down to this share of the largest class: to
    see what a method makes of sets like that. Images without a class are left out. Null to take images as they are."""
    augment: PolicyConfig = PolicyConfig()
    """How far views may go."""
    labels: LabelledConfig | None = None
    """Labelled images beside the unlabelled ones, for methods that contrast or cluster; so many unlabelled ones less
    that a step sees as many views as without."""

    @property
    def from_weights(self) -> bool:
        """Whether it starts from published weights, or some in a file."""
        return self.start is not None and names_weights(self.start)

    @model_validator(mode="after")
    def _whole(self) -> StageConfig:
        if self.augment.area and self.augment.area[0] > self.augment.area[1]:
            raise ValueError(f"augment.area {list(self.augment.area)}: the smallest share is larger than the largest")
        return self


def resolved(stages: Sequence[StageConfig], student: tuple[str, int]) -> list[StageConfig]:
    """The stages with what they start from, its backbone and their size filled in; `student`: backbone and image size.

    ConfigError if a stage starts from what does not come before it, or names another backbone than that has.
    """
    found: dict[str, StageConfig] = {}
    before = STUDENT
    for stage in stages:
        if stage.name in KEPT or stage.name.startswith(COMPARED):
            raise ConfigError(f"A stage can't be called {stage.name!r}: that name is taken.")
        start = stage.start or before
        if not stage.from_weights:
            require_one_of(start, (*found, *KEPT), f"stages.{stage.name}.start")
        own = (found[start].backbone, found[start].image_size) if start in found else student
        if start in (*found, STUDENT) and stage.backbone not in (None, own[0]):
            raise ConfigError(
                f"stages.{stage.name}.backbone is {stage.backbone!r}, but it starts from {start!r}, which has a "
                f"{own[0]!r}: leave backbone out, or set start to scratch or to weights of a {stage.backbone!r}."
            )
        told = {"start": start, "backbone": stage.backbone or own[0], "image_size": stage.image_size or own[1]}
        found[stage.name] = stage.model_copy(update=told)
        before = stage.name
    return list(found.values())


def classes_a_step(labels: LabelledConfig, classes: Sequence[str]) -> int:
    """How many of the classes a step draws. ConfigError names numbers that would do."""
    count = labels.classes or len(classes)
    if count > len(classes) or len(classes) % count:
        fitting = [number for number in range(2, len(classes) + 1) if len(classes) % number == 0]
        raise ConfigError(
            f"classes is {count}, which does not divide the {len(classes)} classes there are: "
            f"{' or '.join(map(str, fitting))} would."
        )
    return count


def labelled_images(stage: StageConfig, classes: Sequence[str]) -> int:
    """Labelled images in a step of a stage that has some. ConfigError if the others would be too few beside them."""
    assert stage.labels is not None
    drawn = classes_a_step(stage.labels, classes)
    count, most = drawn * stage.labels.images, 2 * (stage.batch - 2)
    if count % 2 or count > most:
        raise ConfigError(
            f"{drawn} classes x {stage.labels.images} images make {count} beside views of "
            f"a batch of {stage.batch}: they have to be even and at most {most}. Set labels.classes, or a larger batch."
        )
    return count
