"""What a training or a measurement starts from: a backbone by timm's name, its weights, and how its images are
normalised.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models import backbone as backbones
from pipeline.models.backbone import statistics
from pipeline.models.checkpoint import ABOUT as MODEL
from pipeline.models.checkpoint import WEIGHTS as MODEL_WEIGHTS
from pipeline.models.checkpoint import read_tensors, write_tensors
from pipeline.models.encoder import Encoder, Statistics
from pipeline.recipe.evaluation import StartConfig
from pipeline.steps.artifact import Artifact, Inputs, read_json, write_json

WEIGHTS, ABOUT = "backbone.safetensors", "backbone.json"
INSIDE = "backbone.model."
"""Before the names of the backbone's weights, in those of a teacher's or the student's network."""


@dataclasses.dataclass(frozen=True)
class InitialBackbone:
    """A backbone: its timm name, the side of its images (pixels), mean and standard deviation for images in [0, 1], and
    its weights by timm's names, None for fresh ones.
    """

    name: str
    size: int
    statistics: Statistics
    weights: dict[str, Tensor] | None

    def encoder(self) -> Encoder:
        """It as a network."""
        made = Encoder(self.name, self.size, self.statistics)
        if self.weights is not None:
            made.reset(self.weights)
        return made

    def resized(self, size: int) -> InitialBackbone:
        """It for images of another side: embeddings of positions are resampled."""
        weights = self.weights
        if weights is not None and size != self.size:
            weights = backbones.resampled(backbones.create(self.name, size), weights, self.name)
        return dataclasses.replace(self, size=size, weights=weights)


def of_artifact(made: Artifact) -> InitialBackbone:
    """The backbone of a stage, of a teacher or of the student. ConfigError if the artifact has none."""
    if made.has(ABOUT):
        about = made.load(ABOUT, read_json)
        weights = made.load(WEIGHTS, read_tensors)[1]
        return InitialBackbone(about["backbone"], about["image_size"], (about["mean"], about["std"]), weights)
    about = made.load(MODEL, read_json) if made.has(MODEL) else {}
    if about.get("format") == "network":
        tensors = made.load(MODEL_WEIGHTS, read_tensors)[1]
        weights = {name.removeprefix(INSIDE): one for name, one in tensors.items() if name.startswith(INSIDE)}
        mean, std = ((tensors[name].flatten() / 255).tolist() for name in ("mean", "std"))
        return InitialBackbone(about["backbone"], about["image_size"], (mean, std), weights)
    if about.get("format") == "timm_classifier":
        tensors = made.load(MODEL_WEIGHTS, read_tensors)[1]
        model = backbones.create(about["model"], about["size"])
        weights = backbones.match(model, tensors, str(made))
        return InitialBackbone(about["model"], about["size"], (about["mean"], about["std"]), weights)
    raise ConfigError(
        f"{made}: holds no timm backbone to start from; the student, stages, and teachers with a timm backbone do."
    )


def fresh(backbone: str, size: int) -> InitialBackbone:
    """A backbone with random weights."""
    return InitialBackbone(backbone, size, statistics(backbone), None)


def of_weights(backbone: str, size: int, where: str) -> InitialBackbone:
    """A backbone with published weights, or those of a file: see `pipeline.models.weights.find_weights`."""
    model = backbones.create(backbone, size)
    backbones.load_weights(model, backbone, where)
    return InitialBackbone(backbone, size, statistics(backbone), model.state_dict())


def of_config(config: StartConfig, inputs: Inputs, seed: int) -> InitialBackbone:
    """The backbone that a recipe names, for images of the size it says. Random weights are those of the seed."""
    if config.step is not None:
        return of_artifact(inputs[config.step]).resized(config.image_size)
    assert config.backbone
    if config.weights:
        return of_weights(config.backbone, config.image_size, config.weights)
    torch.manual_seed(seed)
    start = fresh(config.backbone, config.image_size)
    return dataclasses.replace(start, weights=start.encoder().model.state_dict())


def save_backbone(encoder: Encoder, folder: Path) -> None:
    """Leave a backbone for what comes next, under timm's names."""
    write_tensors(folder / WEIGHTS, encoder.model.state_dict())
    mean, std = ((tensor.flatten() / 255).tolist() for tensor in (encoder.mean, encoder.std))
    write_json(folder / ABOUT, {"backbone": encoder.name, "image_size": encoder.size, "mean": mean, "std": std})
