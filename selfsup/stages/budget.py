"""How many steps a stage has, and how many images of which kind are in each."""

from __future__ import annotations

import dataclasses
import math

from pipeline.recipe.base import EPOCHS
from pipeline.recipe.stage import StageConfig


@dataclasses.dataclass(frozen=True)
class Budget:
    """Images in each of `steps`. `batch`: unlabelled ones, if no others are there; `labelled` beside fewer unlabelled
    ones, so that there are as many views of the large kind in all, until step `until`.
    """

    steps: int
    batch: int
    labelled: int = 0
    until: int = 0

    @property
    def beside(self) -> int:
        """Unlabelled images beside labelled ones: 2u + l = 2b."""
        return (2 * self.batch - self.labelled) // 2

    def plain(self, step: int) -> int:
        """Unlabelled images in a step."""
        return self.beside if step < self.until else self.batch

    def before(self, step: int) -> int:
        """Unlabelled images in all steps before."""
        return self.beside * min(step, self.until) + self.batch * max(0, step - self.until)

    def images(self) -> int:
        """Images in all steps, as often as they are there, labelled and unlabelled."""
        return self.before(self.steps) + self._labelled_images()

    def views(self, kinds: int) -> int:
        """Views in all steps: of `kinds` kinds of an unlabelled image, and one of a labelled one."""
        return kinds * self.before(self.steps) + self._labelled_images()

    def _labelled_images(self) -> int:
        return self.labelled * min(self.steps, self.until)


def budget_of(stage: StageConfig, labelled: int, images: int) -> Budget:
    """The budget of a stage of so many images, with so many labelled ones in a step: unless the recipe gives its steps,
    as many as it takes to see the images as often as the epochs say, beside the labelled ones.
    """
    if stage.labels is None:
        return Budget(stage.total_steps(images), stage.batch)
    share, beside = stage.labels.until, Budget(0, stage.batch, labelled).beside
    a_step = share * beside + (1 - share) * stage.batch
    steps = stage.steps or max(1, math.ceil((stage.epochs or EPOCHS) * images / a_step))
    return Budget(steps, stage.batch, labelled, round(share * steps))
