"""Budget of a stage: how many steps it has, and how many unlabelled and labelled images are in each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ingest.dataset import IngestedSet
from ingest.true_labels import class_names
from pipeline.recipe.base import EPOCHS
from pipeline.recipe.stage import LabelledConfig, StageConfig, classes_a_step
from pipeline.steps.artifact import Artifact, of_kind


@dataclasses.dataclass(frozen=True)
class Budget:
    """Images in each of `steps` steps.

    A step has `batch` unlabelled images. Before step `labelled_until` it has `labelled` labelled ones too, and as many
    fewer unlabelled ones that the number of global views stays the same (SuNCEt): 2 u + l = 2 b.
    """

    steps: int
    batch: int
    labelled: int = 0
    labelled_until: int = 0

    @property
    def unlabelled_beside(self) -> int:
        """Unlabelled images in a step with labelled ones, u."""
        return (2 * self.batch - self.labelled) // 2

    def unlabelled(self, step: int) -> int:
        """Return the number of unlabelled images in a step."""
        return self.unlabelled_beside if step < self.labelled_until else self.batch

    def fewest_images(self, images: int) -> int:
        """Return the different unlabelled images in the step with the fewest, of a set of `images` images."""
        return min(images, self.unlabelled(0))

    def unlabelled_before(self, step: int) -> int:
        """Return the number of unlabelled images in all steps before this one."""
        return self.unlabelled_beside * min(step, self.labelled_until) + self.batch * max(0, step - self.labelled_until)

    def views_before(self, step: int, kinds: int) -> int:
        """Return the number of views in all steps before this one: `kinds` of every unlabelled image, one of every
        labelled one.
        """
        return kinds * self.unlabelled_before(step) + self.labelled * min(step, self.labelled_until)


def budget_of(stage: StageConfig, labelled: int, images: int) -> Budget:
    """Return the budget of a stage with `images` images in its set and `labelled` labelled ones in a step.

    The number of steps is the recipe's, or so many that the unlabelled images are seen for the recipe's epochs.
    """
    if stage.labels is None:
        return Budget(stage.total_steps(images), stage.batch)
    share, beside = stage.labels.until, Budget(0, stage.batch, labelled).unlabelled_beside
    images_per_step = share * beside + (1 - share) * stage.batch
    steps = stage.steps or max(1, math.ceil((stage.epochs or EPOCHS) * images / images_per_step))
    return Budget(steps, stage.batch, labelled, round(share * steps))


def fewest_images(config: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> int:
    """Return `Budget.fewest_images` of a stage before it is trained: of each step, every process takes one or more.

    `config` and `artifacts`: the configuration of the step that trains it, and the artifacts of that step's inputs.
    """
    stage, labelled = config["stage"], 0
    if stage["labels"]:
        labels = LabelledConfig.model_validate(stage["labels"])
        spaces = {name: IngestedSet(made).spaces for name, made in of_kind(artifacts.values(), "data").items()}
        labelled = classes_a_step(labels, class_names(stage["data"], spaces)) * labels.images
    images = round(stage["share"] * artifacts[f"pool.{stage['name']}"].counts["images"])
    return Budget(1, stage["batch"], labelled, labelled_until=1).fewest_images(images)
