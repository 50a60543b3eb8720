"""Budget of a stage: how many steps it has, and how many unlabelled and labelled images are in each."""

from __future__ import annotations

import dataclasses
import math

from pipeline.recipe.base import EPOCHS
from pipeline.recipe.stage import StageConfig


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
