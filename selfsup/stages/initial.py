"""Initial backbone of a stage: where it starts, at the stage's image size and normalised by its images' statistics."""

from __future__ import annotations

import dataclasses

from pipeline.data.dataset import ImageDataset
from pipeline.data.statistics import Statistics, image_statistics, own_statistics
from pipeline.models import initial
from pipeline.models.initial import InitialBackbone
from pipeline.recipe.stage import SCRATCH, StageConfig
from pipeline.steps.artifact import Inputs


def initial_backbone(stage: StageConfig, start: str | None, inputs: Inputs, images: ImageDataset) -> InitialBackbone:
    """Return the backbone of the step `start`, or if that is None, the one that the recipe names.

    It is resized to the stage's image size and gets the statistics of the stage's images, unless the stage keeps those
    that came with the backbone. Raises ConfigError if it can't take images of their channels.
    """
    own = own_statistics(images)
    backbone = initial.backbone_from_artifact(inputs[start]) if start else _named_by_recipe(stage, own)
    resized = backbone.resized(stage.image_size or backbone.size).with_channels(own)
    if stage.statistics == "data":
        return dataclasses.replace(resized, statistics=own or image_statistics(images))
    return resized


def _named_by_recipe(stage: StageConfig, own: Statistics | None) -> InitialBackbone:
    assert stage.backbone
    assert stage.image_size
    assert stage.start
    if stage.start == SCRATCH:
        return initial.random_backbone(stage.backbone, stage.image_size, own)
    return initial.backbone_from_weights(stage.backbone, stage.image_size, stage.start)
