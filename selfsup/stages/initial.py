"""Initial backbone of a stage: where it starts, at the stage's image size and normalised by its images' statistics."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from pipeline.data.dataset import ImageDataset
from pipeline.data.decode import decode_image
from pipeline.models import initial
from pipeline.models.initial import InitialBackbone
from pipeline.models.timm_models import Statistics
from pipeline.recipe.stage import SCRATCH, StageConfig
from pipeline.steps.artifact import Inputs

MAX_IMAGES, SIDE = 2000, 64
"""Images that mean and standard deviation are measured on, at most, and the side in pixels that they are resized to."""


def initial_backbone(stage: StageConfig, start: str | None, inputs: Inputs, images: ImageDataset) -> InitialBackbone:
    """Return the backbone of the step `start`, or if that is None, the one that the recipe names.

    It is resized to the stage's image size and gets the statistics of the stage's images, unless the stage keeps those
    that came with the backbone.
    """
    backbone = initial.backbone_from_artifact(inputs[start]) if start else _named_by_recipe(stage)
    resized = backbone.resized(stage.image_size or backbone.size)
    return dataclasses.replace(resized, statistics=image_statistics(images)) if stage.statistics == "data" else resized


def _named_by_recipe(stage: StageConfig) -> InitialBackbone:
    assert stage.backbone
    assert stage.image_size
    assert stage.start
    if stage.start == SCRATCH:
        return initial.random_backbone(stage.backbone, stage.image_size)
    return initial.backbone_from_weights(stage.backbone, stage.image_size, stage.start)


def image_statistics(images: ImageDataset) -> Statistics:
    """Return mean and standard deviation per channel, for images in [0, 1], of images spread evenly over the set."""
    sums, squares, count = np.zeros(3), np.zeros(3), 0
    for index in range(0, len(images), -(-len(images) // MAX_IMAGES)):
        _, image = images.decode(index, functools.partial(decode_image, at_least=(SIDE, SIDE)))
        pixels = np.asarray(image.resize((SIDE, SIDE)), np.float64).reshape(-1, 3) / 255
        sums, squares, count = sums + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
    return tuple(mean.tolist()), tuple(std.tolist())
