"""The recipe's `stages` section: the keys that all self-supervised methods share. No torch.

What a method adds is in its own file in `selfsup/`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.errors import ConfigError, require_one_of
from pipeline.recipe.base import NAME, BaseConfig, FitConfig, Name, UniqueItems

STUDENT, SCRATCH, PUBLISHED = "student", "scratch", "timm"
"""Starts of a stage, beside other stages and weights."""
RESERVED_STARTS = (STUDENT, SCRATCH, PUBLISHED)
"""Starts that no stage may be named after."""
CROSS_ENTROPY = "cross_entropy"
"""A loss of labelled images that some methods have instead of `labels.method`."""
COMPARED = "compare_"
"""The beginning of the names of stages in a comparison."""
Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


def names_weights(start: str) -> bool:
    """Return True if a start names weights, published or in a file, and not a step that leaves a backbone.

    A file `teacher.bin` in the working folder has to be written `./teacher.bin`.
    """
    return start == PUBLISHED or not (re.fullmatch(NAME, start) or re.fullmatch(r"(stage|teacher)\.\w+", start))


class PolicyConfig(BaseConfig):
    """Augmentation of views. A key that is not given is the method's own."""

    area: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] | None = None
    """Smallest and largest share of the image's area that a global view covers; local views keep the method's own."""
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
    """Largest rotation of hue, either way, as a share of the circle."""
    grayscale: Probability | None = None
    """Probability of a gray view."""
    blur: Probability | None = None
    """Probability of a Gaussian blur with a standard deviation from 0.1 to 2 pixels."""
    solarize: Probability | None = None
    """Probability of inverting pixels above half of the range."""


class LabelledConfig(BaseConfig):
    """Labelled images beside the unlabelled ones, as in SuNCEt (Assran et al., 2020)."""

    method: Literal["suncet", "supcon"] = "suncet"
    """Loss: the sum over an image's class inside (suncet) or outside (supcon) the logarithm."""
    per_class: int | None = Field(default=None, ge=2)
    """Labelled images of each class that are used at all, at least `images`; null for all."""
    classes: int | None = Field(default=None, ge=2)
    """Classes in a step; must divide their number; null for all."""
    images: int = Field(default=4, ge=2)
    """Images of each of these classes in a step, with one view each."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature of the softmax over cosines."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing of suncet: this share of a label is spread evenly over the classes of the step."""
    until: float = Field(default=1.0, gt=0, le=1)
    """Share of the steps after which labelled images are switched off."""

    def loss_keys(self) -> list[str]:
        """Return the keys of the loss that have another value than the default."""
        fields = type(self).model_fields
        return [key for key in ("method", "temperature", "smoothing") if getattr(self, key) != fields[key].default]

    @model_validator(mode="after")
    def _check_amounts(self) -> LabelledConfig:
        if self.per_class and self.per_class < self.images:
            raise ValueError(
                f"per_class ({self.per_class}) is less than images ({self.images}), those of a class in a step: set "
                f"images to {self.per_class}, or a larger per_class"
            )
        if self.smoothing and self.method != "suncet":
            raise ValueError(f"smoothing ({self.smoothing}) is for method suncet; {self.method} has none: leave it out")
        return self


class StageConfig(FitConfig):
    """A self-supervised pretraining run: its start, its images, and its schedule."""

    labelled_loss: ClassVar[str | None] = None
    """Name of the method's own loss of labelled images; None for those of `labels.method`."""
    taught_task: ClassVar[str | None] = None
    """The task whose labels it learns from `taught_by`; None for its features alone."""
    learns_from_classes: ClassVar[bool] = False
    """The method learns from the classes of its images."""
    name: Name
    """Name of the stage."""
    method: str
    """Method: the name of a file in `selfsup/`."""
    data: Annotated[list[str], UniqueItems] = Field(min_length=1)
    """Sets whose training images it sees, each image once."""
    start: str | None = None
    """Initial backbone: `student`, an earlier stage's name, `scratch`, or weights as a teacher names them; null for the
    stage before this one, or the student."""
    backbone: str | None = None
    """timm model, for `scratch` and weights; null for the student's."""
    image_size: int | None = Field(default=None, multiple_of=16, ge=16)
    """Side of the global views, pixels; null for that of the stage it starts from, else the student's."""
    trainable: Literal["all", "norm"] = "all"
    """Train the whole backbone, or only its normalization layers (HPT-BN)."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth of the backbone's blocks, from 0 in the first to this in the last; momentum copies have none.
    Backbones with batch norms go without."""
    statistics: Literal["data", "backbone"] = "data"
    """Normalize images by the mean and standard deviation of the stage's own images, or by the backbone's."""
    share: Share = 1.0
    """Share of the images that is used; smaller shares are subsets of larger ones."""
    long_tail: Share | None = None
    """Thin out the classes exponentially, in their order, down to this share of the largest class, to see how a method
    copes with a long tail. Images without a class are left out. Null to use all images."""
    augment: PolicyConfig = PolicyConfig()
    """Augmentation of views; keys that are null are the method's own."""
    labels: LabelledConfig | None = None
    """Labelled images beside the unlabelled ones, for methods that contrast or cluster, but not for `supcon`, which
    learns from the classes of all its images. A step then has fewer of the unlabelled ones, so that its number of views
    stays the same."""

    @property
    def taught_by(self) -> str | None:
        """The teacher of the recipe that the method learns from: the key `teacher` of methods that have it."""
        teacher: str | None = getattr(self, "teacher", None)
        return teacher

    @property
    def reads_maps(self) -> bool:
        """True if it learns from this teacher's maps as well as from its vectors."""
        return False

    @property
    def needs_pictures(self) -> bool:
        """True if it can only learn from images of 3 channels, as those that a teacher is asked about."""
        return self.taught_by is not None

    @property
    def from_weights(self) -> bool:
        """True if it starts from published weights, or from those in a file."""
        return self.start is not None and names_weights(self.start)

    @model_validator(mode="after")
    def _whole(self) -> StageConfig:
        if self.augment.area and self.augment.area[0] > self.augment.area[1]:
            raise ValueError(f"augment.area {list(self.augment.area)}: the smallest share is larger than the largest")
        if self.labelled_loss and self.labels and (given := self.labels.loss_keys()):
            raise ValueError(
                f"labels: {self.method} learns labelled images by their {self.labelled_loss.replace('_', ' ')}: leave "
                f"{' and '.join(given)} out"
            )
        if self.batch < 2:
            raise ValueError(f"batch ({self.batch}): methods compare an image with others, so it takes 2 or more")
        return self


def resolved(stages: Sequence[StageConfig], student: tuple[str, int]) -> list[StageConfig]:
    """Return the stages with start, backbone and image size filled in; `student`: (backbone, image size).

    Raises ConfigError if a start does not come before its stage, or the stage names another backbone than its start.
    """
    found: dict[str, StageConfig] = {}
    before = STUDENT
    for stage in stages:
        if stage.name in RESERVED_STARTS or stage.name.startswith(COMPARED):
            raise ConfigError(f"A stage can't be called {stage.name!r}: that name is taken.")
        start = stage.start or before
        if not stage.from_weights:
            require_one_of(start, (*found, *RESERVED_STARTS), f"stages.{stage.name}.start")
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
    """Return the number of classes in a step. ConfigError names numbers that would work."""
    count = labels.classes or len(classes)
    if count > len(classes) or len(classes) % count:
        fitting = [number for number in range(2, len(classes) + 1) if len(classes) % number == 0]
        raise ConfigError(
            f"classes is {count}, which does not divide the {len(classes)} classes there are: "
            f"{' or '.join(map(str, fitting))} would."
        )
    return count


def labelled_images(stage: StageConfig, classes: Sequence[str]) -> int:
    """Return the number of labelled images in a step. ConfigError if too few unlabelled ones would be left."""
    assert stage.labels is not None
    drawn, images = classes_a_step(stage.labels, classes), stage.labels.images
    count, most = drawn * images, 2 * (stage.batch - 2)
    if count % 2 or count > most:
        even = images + count % 2
        works = [f"images: {even}"] if count % 2 else []
        works += [f"batch: {drawn * even // 2 + 2}"] if drawn * even > most else []
        room = f"an even number, at most {most}" if most else "none"
        raise ConfigError(
            f"{drawn} classes x {images} images make {count} labelled images a step, and a batch of {stage.batch} has "
            f"room for {room}: {' with '.join(works)} would work, or fewer classes or images a step."
        )
    return count
