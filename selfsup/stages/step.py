"""The step that trains a stage, and the images and labels that it reads."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ingest.dataset import IngestedSet
from ingest.pool import pool_keys, pool_shards
from ingest.resized import read_resized
from pipeline.data.dataset import DatasetShard, ImageDataset
from pipeline.errors import ConfigError, error_context
from pipeline.models.initial import save_backbone
from pipeline.recipe.stage import StageConfig
from pipeline.steps import ranks
from pipeline.steps.artifact import Inputs
from pipeline.training.validation import Validation
from selfsup.components.config import MethodConfig
from selfsup.components.method import StageSetting
from selfsup.stages.budget import budget_of
from selfsup.stages.initial import initial_backbone
from selfsup.stages.labelled_sampler import ClassSampler, image_classes, load_sampler
from selfsup.stages.objective import override_policies
from selfsup.stages.stream import ViewStream
from selfsup.stages.training import StageJob, train
from selfsup.stages.validation import stage_validation
from tasks.frozen_teacher import FrozenTeacher
from tasks.network import seed_part
from tasks.teacher import open_teacher


def stage_config(settings: Mapping[str, Any]) -> MethodConfig:
    """Return the configuration of a stage, as its method's own class."""
    config: MethodConfig = importlib.import_module(f"selfsup.{settings['method']}").Config.model_validate(settings)
    return config


class StageData(NamedTuple):
    """The images of a stage, and what it reads of their labels."""

    images: ImageDataset
    sampler: ClassSampler | None
    """Of the labelled images beside the others, if any."""
    classes: Tensor | None
    """`StageSetting.classes`, for a method that learns from them."""
    validation: Validation | None


def load_stage_data(config: Mapping[str, Any], inputs: Inputs) -> StageData:
    """Load the images of a stage and their labels. ConfigError if they are too few."""
    stage, seed = stage_config(config["stage"]), config["seed"]
    images = load_images(stage, inputs, seed)
    classes = _load_classes(stage, inputs, images) if stage.learns_from_classes else None
    validation = stage_validation(stage, inputs)
    sampler = load_sampler(stage, inputs, images, seed) if stage.labels else None
    return StageData(images, sampler, classes, validation)


def _load_classes(stage: StageConfig, inputs: Inputs, images: ImageDataset) -> Tensor:
    numbers = image_classes(stage, inputs, images).numbers
    if (numbers < 0).all():
        raise ConfigError(
            f"method {stage.method!r} learns from classes, and none of the {len(images)} images of "
            f"{', '.join(stage.data)} has one: label some, or take another method."
        )
    return torch.from_numpy(numbers)


def load_images(stage: StageConfig, inputs: Inputs, seed: int) -> ImageDataset:
    """Load the images of the stage's pool, or the stage's `share` of them. Raises ConfigError if they are too few."""
    pool = inputs[f"pool.{stage.name}"]
    channels = IngestedSet(inputs[f"data.{stage.data[0]}"]).channels
    listed = [
        DatasetShard(shard, rows, {}, channels=channels) for _, shard, rows in pool_shards(pool, inputs.of_kind("data"))
    ]
    shards = list(listed)
    if stage.share < 1:
        chosen = pool_keys(pool, stage.share, seed)
        for number, shard in enumerate(shards):
            rows = [row for row in shard.rows if shard.images.keys[row] in chosen]
            shards[number] = dataclasses.replace(shard, rows=np.array(rows, shard.rows.dtype))
    images = read_resized(ImageDataset(shards), inputs)
    if len(images) < 2:
        raise ConfigError(_too_few(stage, len(images), sum(len(shard.rows) for shard in listed)))
    stage.check_batch(len(images))
    return images


def _too_few(stage: StageConfig, images: int, pooled: int) -> str:
    """Return what is wrong where a stage has fewer than 2 images, of so many in its pool."""
    data = ", ".join(stage.data)
    if pooled < 2:
        return f"{images} images to train on in {data}: 2 or more are needed."
    return (
        f"share {stage.share:g} of {pooled} images leaves {images} to train on in {data}: 2 are needed, so that "
        f"{math.ceil(2000 / pooled) / 1000:g} or more would work."
    )


def load_frozen_teacher(stage: MethodConfig, inputs: Inputs) -> FrozenTeacher | None:
    """Load the teacher that the stage's method learns from, if it does. ConfigError if its model tells too little."""
    if stage.taught_by is None:
        return None
    with error_context(f"stages.{stage.name}.teacher"):
        teacher = open_teacher(inputs[f"teacher.{stage.taught_by}"])
        return FrozenTeacher(teacher, stage.reads_maps, with_vector=stage.taught_task is None)


def run_stage(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Train the initial backbone on the stage's images, and save it with the statistics that normalise its images.

    `config`: `name`; `stage`, resolved; `seed`; and `start`, the step that it starts from, null for none. The counts
    say how many images and views were seen in the steps that were taken. Of several processes that train together, the
    first one saves it and returns the counts, the others {}. Raises ConfigError if the method can't use the backbone,
    or if images or labels are too few.
    """
    stage, seed = stage_config(config["stage"]), config["seed"]
    with error_context(config["name"]):
        images, sampler, classes, validation = load_stage_data(config, inputs)
    start = initial_backbone(stage, config["start"], inputs, images)
    budget = budget_of(stage, sampler.classes * sampler.images if sampler else 0, len(images))
    seed_part(seed, f"stage.{stage.name}")
    names = sampler.names if sampler else ()
    setting = StageSetting(start.size, len(images), stage.batch, classes, names, load_frozen_teacher(stage, inputs))
    method = stage.build_for_stage(start.build(stage.drop_path), setting)
    stream = ViewStream(images, override_policies(method.view_kinds(), stage.augment), budget, sampler, seed)
    initial = {name: parameter.detach().clone() for name, parameter in method.backbone.model.named_parameters()}
    counts = train(StageJob(config["name"], stage, method, stream, validation), inputs.runtime, out)
    if not ranks.is_first():
        return {}
    save_backbone(method.backbone.cpu(), out)
    trained = dict(method.backbone.model.named_parameters())
    untrained = [name for name, parameter in initial.items() if torch.equal(parameter, trained[name])]
    for name, other in method.other_backbones().items():
        save_backbone(other.cpu(), out / name)
    images_seen, views_seen = (budget.views_before(counts["steps"], kinds) for kinds in (1, len(stream.kinds)))
    seen = {"images_seen": images_seen, "views_seen": views_seen}
    return {"images": len(images), **seen, "family": method.family, "untrained": untrained, **counts}
