"""The labelled images beside the unlabelled ones: which there are, which are used, and which of them a step draws
(SuNCEt).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.dataset import IngestedSet
from ingest.true_labels import train_classes
from pipeline.data.augment import generator
from pipeline.data.dataset import ImageDataset
from pipeline.data.sampling import random_order
from pipeline.errors import ConfigError, error_context
from pipeline.recipe.stage import LabelledConfig, StageConfig, classes_a_step, labelled_images
from pipeline.steps.artifact import Inputs

STREAM = 7
"""Sets these draws apart from others by the same seed."""


@dataclasses.dataclass(frozen=True)
class ClassSampler:
    """Draws classes and images of each for every step: class-stratified, as SuNCEt's sampler.

    A random order of all classes is used up in chunks, `classes` at a time; of each class `images` are drawn, no image
    twice in a step. `members`: by class, positions of its images, in an order that does not depend on the positions.
    """

    members: Sequence[NDArray[np.int64]]
    classes: int
    images: int
    seed: int

    def step(self, number: int) -> list[tuple[int, int]]:
        """(position, class) of the images of a step, the classes in turn: c1..cC, c1..cC, and so on."""
        chunks = len(self.members) // self.classes
        order = generator(self.seed, STREAM, number // chunks).permutation(len(self.members))
        chunk = order[(number % chunks) * self.classes :][: self.classes]
        rng = generator(self.seed, STREAM, number // chunks, number % chunks, 1)
        drawn = [rng.choice(self.members[one], self.images, replace=False) for one in chunk]
        return [(int(drawn[place][turn]), int(one)) for turn in range(self.images) for place, one in enumerate(chunk)]


class ImageClasses(NamedTuple):
    """Images: their keys, the names of the classes, and which class each is of, -1 if that is not known."""

    keys: Sequence[str]
    classes: Sequence[str]
    of: NDArray[np.int64]


def class_sampler(config: LabelledConfig, known: ImageClasses, seed: int) -> ClassSampler:
    """The sampler over these images. Which labels of a class are used is drawn as for probes and fine-tuning, so that
    with one seed few labels are the same ones. ConfigError names classes with too few images, or the numbers of classes
    that would do.
    """
    count = classes_a_step(config, known.classes)
    order = random_order(known.keys, seed)
    members = []
    for number, name in enumerate(known.classes):
        there = order[known.of[order] == number]
        wanted = max(config.per_class or 0, config.images)
        if len(there) < wanted:
            raise ConfigError(
                f"of {len(known.keys)} images {len(there)} are labelled as {name!r}, and {wanted} of each "
                f"class are asked for (per_class {config.per_class}, images {config.images})."
            )
        members.append(there[: config.per_class])
    return ClassSampler(members, count, config.images, seed)


def labels_of(stage: StageConfig, inputs: Inputs, images: ImageDataset, seed: int) -> tuple[ClassSampler | None, int]:
    """What draws the labelled images of each step, and how many they are. ConfigError if the stage asks for labels that
    its sets lack.
    """
    if stage.labels is None:
        return None, 0
    with error_context("labels"):
        known = classes_of(stage, inputs, images)
        return class_sampler(stage.labels, known, seed), labelled_images(stage, known.classes)


def classes_of(stage: StageConfig, inputs: Inputs, images: ImageDataset) -> ImageClasses:
    """The images of the stage with their classes, as far as its sets know them."""
    names, classes = train_classes({name: IngestedSet(inputs[f"data.{name}"]) for name in stage.data})
    keys = images.keys()
    return ImageClasses(keys, names, np.array([classes.get(key, -1) for key in keys]))
