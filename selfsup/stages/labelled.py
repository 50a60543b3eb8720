"""The labelled images beside the unlabelled ones: which there are, which are used, and which of them a step draws
(SuNCEt).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import Inputs
from pipeline.augment import generator
from pipeline.errors import ConfigError
from pipeline.loader import Library
from pipeline.stages import LabelledConfig, StageConfig, class_names, classes_a_step, labelled_images
from selfsup.stages.images import keys_of
from tasks.ingest import IngestedSet
from tasks.shelves import truth_library

STREAM = 7
"""Sets these draws apart from others by the same seed."""


@dataclasses.dataclass(frozen=True)
class ClassSampler:
    """Draws classes and images of each for every step: class-stratified, as SuNCEt's sampler.

    A random order of all classes is used up in chunks, `classes` at a time; of each class `images` are drawn, no image
    twice in a step. `members`: by class, positions of its images.
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


def class_sampler(config: LabelledConfig, classes: Sequence[str], of: NDArray[np.int64], seed: int) -> ClassSampler:
    """The sampler over images of which image i is of class `of[i]`. ConfigError names classes with too few images, or
    the numbers of classes that would do.
    """
    count = classes_a_step(config, classes)
    rng = generator(seed, STREAM)
    members = []
    for number, name in enumerate(classes):
        there = rng.permutation(np.flatnonzero(of == number))
        wanted = max(config.per_class or 0, config.images)
        if len(there) < wanted:
            raise ConfigError(
                f"Class {name!r} has {len(there)} labelled images, and labels asks for {wanted} of each "
                f"(per_class {config.per_class}, images {config.images})."
            )
        members.append(np.sort(there[: config.per_class]))
    return ClassSampler(members, count, config.images, seed)


def labels_of(stage: StageConfig, inputs: Inputs, images: Library, seed: int) -> tuple[ClassSampler | None, int]:
    """What draws the labelled images of each step, and how many they are. ConfigError if the stage asks for labels that
    its sets lack.
    """
    if stage.labels is None:
        return None, 0
    names, of = classes_of(stage, inputs, images)
    return class_sampler(stage.labels, names, of, seed), labelled_images(stage, names)


def classes_of(stage: StageConfig, inputs: Inputs, images: Library) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The classes, and for each image the number of its class, -1 where that is not known."""
    sets = {name: IngestedSet(inputs[f"data.{name}"]) for name in stage.data}
    names = class_names(stage, {name: found.spaces for name, found in sets.items()})
    known: dict[str, int] = {}
    for found in sets.values():
        if "classification" in found.spaces:
            labelled = truth_library(found, "train", {"kind": "classification"})
            for index in range(len(labelled)):
                number, row = labelled.locate(index)
                key = labelled.shelves[number].images.keys[row]
                known[key] = int(labelled.values(index)["kind"]["probs"].argmax())
    keys = [key for shelf in images.shelves for key in keys_of(shelf)]
    return names, np.array([known.get(key, -1) for key in keys])
