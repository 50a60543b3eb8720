"""The recipe's `student` and `labelling` sections. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import ConfigError
from pipeline.recipe.base import BaseConfig, UniqueItems
from pipeline.recipe.teacher import TrainingConfig

PREVIOUS_STUDENT = "student"
"""Stands for the student of the round before, in `disagreement`."""
DisagreementMode = Literal["focus", "trust"]


class DisagreementConfig(BaseConfig):
    """Weights of a teacher's labels by how far they are from other labels of the same images."""

    against: str
    """The other labels: a teacher of the same task and classes, or `student`, the student of the round before, whose
    labels there are from the second of `rounds` on."""
    mode: DisagreementMode
    """With a distance d in [0, 1], `focus` weights a label by tanh(d), so that images count where the two disagree;
    `trust` by 1 - d, so that they count where the two agree."""


class StudentConfig(TrainingConfig):
    """The multi-task student."""

    later_keys = frozenset({"disagreement"})
    weighting: Literal["schedule", "equal", "uncertainty", "running"] = "schedule"
    """Loss weights: MuST's rule from the schedules of teacher and student, all equal to 1, learned uncertainties, or in
    inverse proportion to each loss's running mean.
    `schedule` refuses teachers that were not trained in this run, such as published ones, and those trained by another
    optimizer than the student: give each of them a weight in `loss_weights`, or choose another rule."""
    loss_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Loss weight by teacher, instead of the rule's, but for `uncertainty` and `running`; 0 leaves the teacher out."""
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Smallest probability that is kept, by teacher or task; 0.5 for detection, masks, keypoints and segmentation,
    else 0. Of teachers that are not calibrated, it is the smallest score. Of several classes per image, t keeps the
    classes of at least t and those of at most 1 - t."""
    applicability: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """By teacher, the applicability below which its labels are not used, as in {things: 0.05}: the share of the
    teacher's held-out images that are at least as unlike its training images as this image is."""
    disagreement: dict[str, DisagreementConfig] = {}
    """By teacher, as in {parts: {against: student, mode: trust}}: weights of its pseudo labels in the mean that its
    head's loss is. True labels count 1, as do labels of images that the other one says nothing of."""
    labels: Literal["true_first", "pseudo_only", "true_only"] = "true_first"
    """Prefer true labels to pseudo labels, or use only one kind."""
    truths: dict[str, Annotated[list[str], UniqueItems]] = {}
    """Sets with further true labels, by teacher, as in {things: [corrected]}. Of an image in several sets the label of
    the first set counts; the set that the teacher learned from comes last. Images are matched by their bytes, so the
    sets need not be in the pool. Classes have to be the teacher's, in the same order."""

    def check_weights(self, optimizers: Mapping[str, str | None]) -> None:
        """Raise ConfigError if a teacher would have no weight, or one from another optimizer's learning rate.

        `optimizers`: by teacher, `optimizer_name` of its training; None for one that was not trained here.
        """
        if self.weighting in ("uncertainty", "running") and self.loss_weights:
            raise ConfigError(
                f"student.loss_weights can't be given with weighting: {self.weighting}, which finds them itself."
            )
        ways_out = "give student.loss_weights.{}, for example 0.1, or set student.weighting: equal."
        for name, optimizer in optimizers.items():
            if self.weighting != "schedule" or name in self.loss_weights or optimizer == self.optimizer_name():
                continue
            if optimizer is None:
                raise ConfigError(
                    f"Teacher {name!r} has no training schedule, from which MuST's weighting is computed: "
                    + ways_out.format(name)
                )
            raise ConfigError(
                f"Teacher {name!r} is trained by {optimizer} and the student by {self.optimizer_name()}, whose "
                f"learning rates MuST's weighting can't compare: train both alike, {ways_out.format(name)}"
            )


class LabellingConfig(BaseConfig):
    """The labelling of the pool. No key changes a label; `max_failed` can end a run."""

    batch: int = Field(default=32, ge=1)
    """Images per forward pass of a teacher."""
    max_failed: float = Field(default=0.02, ge=0, le=1)
    """Share of the labels of all teachers together that may fail; if more did, the step fails at its end."""
    student: bool = False
    """True to let the trained student label the pool as well: `must browse` then shows where it and its teachers
    disagree."""
