"""Base classes of the recipe's sections for teachers and for networks that are trained. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.recipe.augment import AugmentConfig, Resize
from pipeline.recipe.base import BaseConfig, FitConfig, NamedBackbone, UniqueItems
from pipeline.stores.labels import LabelSpace

ImageSize = Annotated[int, Field(multiple_of=32, ge=32, le=65_536)]
"""Side of a network's square input, pixels."""
Width = Annotated[int, Field(ge=8, le=65_536)]
"""Channels of a network's pyramid and heads."""


class TrainingConfig(FitConfig):
    """A network and its training: the keys that supervised teachers and the student share."""

    backbone: str = "resnet18"
    """Any timm model."""
    weights: str | None = None
    """Initial weights of the backbone: a file, `package:<module>/<file>`, or `timm` (published); null for random."""
    image_size: ImageSize = 224
    """Side of the square input, pixels."""
    resize: Resize = "stretch"
    """How images become square, in training and prediction: `stretch` them to fill it, or `pad` them, which keeps their
    aspect ratio."""
    width: Annotated[Width, Field(multiple_of=8)] = 128
    """Channels of the pyramid and the heads."""
    proposals: int | None = Field(default=None, ge=8)
    """Region proposals per image for the box head of detection, masks and keypoints; null for as many as suit
    `image_size`: 98 at 224, 512 at 512, 1,000 from 716 on."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a class label that is spread evenly: of an image or a pixel over all classes, of several classes per
    image over present and absent. Boxes, masks, keypoints, depth, normals, texture and regression have none."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of training images."""

    def named_backbones(self) -> Sequence[NamedBackbone]:
        return [NamedBackbone(self.backbone, self.image_size, self.weights, self.batch // self.accumulate)]


class CalibrateConfig(BaseConfig):
    """Calibrate a teacher's scores on held-out images, so that a threshold is a probability."""

    data: str | None = None
    """The labelled set, of which the split `val`, or else `test`, is used; the one that the teacher is trained on if
    not given. Its classes have to be the teacher's, in the same order."""


class TeacherConfig(BaseConfig):
    """The keys that every kind of teacher has.

    Example:
        class Config(TeacherConfig):
            kind: Literal["luma"] = "luma"
    """

    readout: ClassVar[Literal["maps", "vector", "nothing"] | None] = None
    """What its model tells of an image beside its labels: maps and a vector, a vector, or nothing; None if that is not
    known before it is made. Stages that learn from a teacher ask for it."""
    kind: str
    """Kind of teacher: the name of a file in `teachers/`."""
    task: str
    """Task: the name of a folder in `tasks/`."""
    require: Literal["none"] | dict[str, float] = {}
    """Metrics to reach on its held-out images (`val`, or else `test`) before it may label, as {miou: 0.3}, besides that
    it has to be better than the trivial baseline; `none` lets it label in any case. For teachers that are trained
    here, and those that are calibrated on a named set."""
    labels: Annotated[list[str], UniqueItems, Field(min_length=1)] | Literal["live"] | None = None
    """Sets of the pool that it labels; null for all. With `live` it labels none: it is asked about each augmented image
    while the student is trained, and nothing is stored. For the tasks `features` and
    `feature_maps`."""
    domain: str | None = None
    """A set of images of the kind that it knows, labelled or not, by which the applicability of its labels is told: the
    one that it is trained on, or else calibrated on, if not given."""
    calibrate: CalibrateConfig | None = None
    """Calibrate its scores, as in {data: street}; null for scores as they come."""

    @property
    def is_live(self) -> bool:
        """True if it is asked while the student is trained, and labels no set of the pool."""
        return self.labels == "live"

    @property
    def labelled_sets(self) -> list[str] | None:
        """The sets of the pool that it labels; None for all."""
        return [] if isinstance(self.labels, str) else self.labels

    @property
    def calibration_set(self) -> str | None:
        """The set on whose held-out images its scores are calibrated, if they are."""
        return (self.calibrate.data or self.training_set) if self.calibrate else None

    @property
    def domain_set(self) -> str | None:
        """The set of images of the kind that it knows, if one is known."""
        return self.domain or self.training_set or self.calibration_set

    @property
    def training_set(self) -> str | None:
        """The set that it learns from: the key `data` of kinds that have it."""
        return getattr(self, "data", None)

    @property
    def prompted_by(self) -> str | None:
        """The teacher whose boxes its model is given with each image, by its name; None if it takes images alone."""
        return None

    def backbone_name(self) -> str | None:
        """Return the timm name of the backbone that others may start from; None if the teacher leaves none.

        Raises ConfigError if the name is in a file that is missing or of another format.
        """
        return None

    def label_space(self) -> LabelSpace | None:
        """Return what its labels mean, if that is known before it is made and without a set that it is trained on."""
        return None
