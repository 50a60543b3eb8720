"""The step of a self-supervised stage."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.dataset import ImageDataset
from pipeline.errors import error_context
from pipeline.models.initial import save_backbone
from pipeline.steps.artifact import Inputs
from selfsup.components.config import MethodConfig
from selfsup.components.method import StageSetting
from selfsup.stages.budget import budget_of
from selfsup.stages.initial import start_of
from selfsup.stages.labelled_sampler import ClassSampler, labels_of
from selfsup.stages.objective import changed
from selfsup.stages.stream import ViewStream, images_of
from selfsup.stages.training import train
from tasks.network import seed_part


def stage_config(settings: Mapping[str, Any]) -> MethodConfig:
    """The configuration of a stage, by its method's own class."""
    found: MethodConfig = importlib.import_module(f"selfsup.{settings['method']}").Config.model_validate(settings)
    return found


class Given(NamedTuple):
    """What a stage learns from: its images, what draws the labelled ones of a step, and how many these are."""

    images: ImageDataset
    sampler: ClassSampler | None
    labelled: int


def given(config: Mapping[str, Any], inputs: Inputs) -> Given:
    """What the stage of this configuration learns from; nothing is trained for that. ConfigError if images or labels
    are too few.
    """
    stage, seed = stage_config(config["stage"]), config["seed"]
    images = images_of(stage, inputs, seed)
    return Given(images, *labels_of(stage, inputs, images, seed))


def run_stage(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Train the backbone of what came before on the images of the stage, and leave it with how images are normalised.

    `config`: `name`, `stage` with all that `resolved` fills in, `seed`, and `start`, the step it starts
    from, null for none. The counts say how many images and views went through all steps. Raises ConfigError if the
    method can't use the backbone, or if images or labels are too few.
    """
    stage, seed = stage_config(config["stage"]), config["seed"]
    with error_context(config["name"]):
        images, sampler, labelled = given(config, inputs)
    start = start_of(stage, config["start"], inputs, images)
    budget = budget_of(stage, labelled, len(images))
    seed_part(seed, f"stage.{stage.name}")
    method = stage.on(start.encoder(), StageSetting(start.size, len(images), stage.batch))
    stream = ViewStream(images, changed(method.kinds(), stage.augment), budget, sampler, seed)
    told = train((config["name"], stage), method, stream, inputs.runtime, out)
    save_backbone(method.backbone.cpu(), out)
    seen = {"images_seen": budget.images(), "views_seen": budget.views(len(stream.kinds))}
    return {"images": len(images), "steps": budget.steps, **seen, "family": method.family, **told}
