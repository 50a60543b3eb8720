"""Labelled images of a stage: which of them are used, and which ones each step draws (SuNCEt)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.dataset import IngestedSet
from ingest.true_labels import train_classes
from pipeline.data.augment import seeded_generator
from pipeline.data.dataset import ImageDataset
from pipeline.data.sampling import random_order
from pipeline.errors import ConfigError, error_context
from pipeline.recipe.stage import LabelledConfig, StageConfig, classes_a_step, labelled_images
from pipeline.steps.artifact import Inputs

SAMPLER_SEED = 7
"""Keeps these draws apart from others with the same seed."""


@dataclasses.dataclass(frozen=True)
class ClassSampler:
    """Class-stratified sampler of labelled images, as SuNCEt's.

    A random permutation of all classes is consumed in chunks of `classes`, one a step; of each class of the chunk,
    `images` images are drawn without replacement. `members`: positions (int64) of the images of each class, in an order
    that does not depend on the positions.
    """

    members: Sequence[NDArray[np.int64]]
    classes: int
    images: int
    seed: int
    names: tuple[str, ...] = ()
    """Of all classes."""

    def draw(self, step: int) -> list[tuple[int, int]]:
        """Return (position, class) of the images of a step, with the classes interleaved: c1..cC, c1..cC, and so on."""
        chunks = len(self.members) // self.classes
        order = seeded_generator(self.seed, SAMPLER_SEED, step // chunks).permutation(len(self.members))
        chunk = order[(step % chunks) * self.classes :][: self.classes]
        rng = seeded_generator(self.seed, SAMPLER_SEED, step // chunks, step % chunks, 1)
        drawn = np.stack([rng.choice(self.members[label], self.images, replace=False) for label in chunk], axis=1)
        return [(int(index), int(label)) for row in drawn for index, label in zip(row, chunk, strict=True)]


class ImageClasses(NamedTuple):
    """Keys of images, the names of the classes, and the class number (N,) int64 of each image, -1 if unknown."""

    keys: Sequence[str]
    names: Sequence[str]
    numbers: NDArray[np.int64]


def class_sampler(config: LabelledConfig, classes: ImageClasses, seed: int) -> ClassSampler:
    """Return the sampler over these images.

    The `per_class` labels used are drawn as for probes and fine-tuning, so that the same seed gives the same ones.
    Raises ConfigError if a class has too few images, or if the classes of a step don't divide their number.
    """
    count = classes_a_step(config, classes.names)
    order = random_order(classes.keys, seed)
    members = []
    for number, name in enumerate(classes.names):
        positions = order[classes.numbers[order] == number]
        needed = max(config.per_class or 0, config.images)
        if len(positions) < needed:
            raise ConfigError(
                f"of {len(classes.keys)} images {len(positions)} are labelled as {name!r}, and {needed} of each "
                f"class are asked for (per_class {config.per_class}, images {config.images}): "
                f"{f'ask for at most {len(positions)}, or ' if len(positions) > 1 else ''}label more."
            )
        members.append(positions[: config.per_class])
    return ClassSampler(members, count, config.images, seed, tuple(classes.names))


def load_sampler(stage: StageConfig, inputs: Inputs, images: ImageDataset, seed: int) -> ClassSampler:
    """Return the sampler of a stage that uses labels. Raises ConfigError if its sets lack those that it asks for."""
    assert stage.labels is not None
    with error_context("labels"):
        classes = image_classes(stage, inputs, images)
        sampler = class_sampler(stage.labels, classes, seed)
        labelled_images(stage, classes.names)  # raises if they do not fit a batch
        return sampler


def image_classes(stage: StageConfig, inputs: Inputs, images: ImageDataset) -> ImageClasses:
    """Load the classes of the stage's images from the true labels of its sets."""
    names, classes = train_classes({name: IngestedSet(inputs[f"data.{name}"]) for name in stage.data})
    keys = images.keys()
    return ImageClasses(keys, names, np.array([classes.get(key, -1) for key in keys]))
