"""What a stage starts from, as its recipe says: a backbone for the stage's own size and images."""

from __future__ import annotations

import dataclasses

import numpy as np

from pipeline.data.dataset import ImageDataset
from pipeline.data.decode import decode
from pipeline.models import initial
from pipeline.models.encoder import Statistics
from pipeline.models.initial import InitialBackbone
from pipeline.recipe.stage import SCRATCH, StageConfig
from pipeline.steps.artifact import Inputs

SAMPLED, SIDE = 2000, 64
"""Images that mean and standard deviation are measured on, at most, and their size in pixels for that."""


def start_of(stage: StageConfig, before: str | None, inputs: Inputs, images: ImageDataset) -> InitialBackbone:
    """What the stage starts from: the backbone that the step `before` left, else what the recipe says; for the stage's
    own size, with the statistics of its images unless it keeps those that come with the backbone.
    """
    given = initial.of_artifact(inputs[before]) if before else _of_recipe(stage)
    resized = given.resized(stage.image_size or given.size)
    return dataclasses.replace(resized, statistics=measured(images)) if stage.statistics == "data" else resized


def _of_recipe(stage: StageConfig) -> InitialBackbone:
    assert stage.backbone
    assert stage.image_size
    assert stage.start
    if stage.start == SCRATCH:
        return initial.fresh(stage.backbone, stage.image_size)
    return initial.of_weights(stage.backbone, stage.image_size, stage.start)


def measured(images: ImageDataset) -> Statistics:
    """Mean and standard deviation per channel of up to SAMPLED images of a library, evenly spread over it."""
    sums, squares, count = np.zeros(3), np.zeros(3), 0
    for index in range(0, len(images), -(-len(images) // SAMPLED)):
        _, data = images.read(index)
        pixels = np.asarray(decode(data, at_least=(SIDE, SIDE)).resize((SIDE, SIDE)), np.float64).reshape(-1, 3) / 255
        sums, squares, count = sums + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)
