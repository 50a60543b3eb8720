"""The recipe's `student` and `labelling` sections. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import ConfigError
from pipeline.recipe.base import BaseConfig
from pipeline.recipe.teacher import TrainingConfig


class StudentConfig(TrainingConfig):
    """The multi-task student."""

    weighting: Literal["schedule", "equal", "uncertainty"] = "schedule"
    """MuST's rule from the schedules of teacher and student, all 1, or learned uncertainties."""
    loss_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Weights by teacher, instead of the rule's (not with `uncertainty`); 0 leaves the teacher out."""
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Smallest score kept, by teacher or task; 0.5 for detection and segmentation, 0 elsewhere."""
    labels: Literal["true_first", "pseudo_only", "true_only"] = "true_first"
    """A true label wins over a pseudo label; or only one of the kinds."""
    truths: dict[str, list[str]] = {}
    """Sets by teacher whose true labels its head learns, as in {things: [corrected]}: of an image in several sets the
    first one's, and only then those of the set that the teacher learned from. They need not be in the pool: an image is
    known by its bytes. Classes have to be the teacher's, in its order."""

    def check_weights(self, scheduled: Mapping[str, bool]) -> None:
        """Raise ConfigError if the weighting can't weigh a teacher; `scheduled` tells who states a schedule."""
        if self.weighting == "uncertainty" and self.loss_weights:
            raise ConfigError("student.loss_weights can't be given with weighting: uncertainty, which learns them.")
        for name, states_it in scheduled.items():
            if self.weighting == "schedule" and not states_it and name not in self.loss_weights:
                raise ConfigError(
                    f"Teacher {name!r} states no schedule, which MuST's weighting works from: "
                    f"give student.loss_weights.{name}, for example 1.0, or set student.weighting: equal."
                )


class LabellingConfig(BaseConfig):
    """How the pool is labelled; none of it changes a label, but `max_failed` can refuse a run."""

    batch: int = Field(default=32, ge=1)
    """Images that go through a teacher at once."""
    max_failed: float = Field(default=0.02, ge=0, le=1)
    """Share of images that may fail to be labelled before the step fails."""
    student: bool = False
    """Whether the student labels the pool as well once it is trained, so that `must browse` can say where it and its
    teachers disagree."""
