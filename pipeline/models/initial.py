"""Initial backbones: what a training or a measurement starts from, and how a stage saves its backbone for the next."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.bands import RGB
from pipeline.data.statistics import Statistics
from pipeline.errors import ConfigError
from pipeline.models.backbone import Backbone
from pipeline.models.checkpoint import ABOUT as MODEL
from pipeline.models.checkpoint import WEIGHTS as MODEL_WEIGHTS
from pipeline.models.checkpoint import read_tensors, write_tensors
from pipeline.models.timm_models import create_timm_model, statistics
from pipeline.models.weight_loading import adapt_weights, load_weights, match_weights
from pipeline.models.weights import NETWORK
from pipeline.recipe.evaluation import StartConfig
from pipeline.steps.artifact import Artifact, Inputs, read_json, write_json

WEIGHTS, ABOUT = "backbone.safetensors", "backbone.json"
NETWORK_PREFIX = "backbone.model."
"""Of the backbone's weights among those of a teacher's or the student's network."""


@dataclasses.dataclass(frozen=True)
class InitialBackbone:
    """A backbone to start from."""

    name: str
    """Of the timm model."""
    size: int
    """Side of its images, pixels."""
    statistics: Statistics
    weights: dict[str, Tensor] | None
    """By timm's names; None for random ones."""

    @property
    def channels(self) -> int:
        """Channels of its images."""
        return len(self.statistics[0])

    def build(self, drop_path: float = 0.0) -> Backbone:
        """Build the backbone with these weights. `drop_path`: see `pipeline.models.timm_models.create_timm_model`."""
        backbone = Backbone(self.name, self.size, self.statistics, drop_path)
        if self.weights is not None:
            backbone.model.load_state_dict(self.weights)
        return backbone

    def resized(self, size: int) -> InitialBackbone:
        """Return the backbone for images of another side: position embeddings are resampled."""
        weights = self.weights
        if weights is not None and size != self.size:
            weights = adapt_weights(create_timm_model(self.name, size, channels=self.channels), weights, self.name)
        return dataclasses.replace(self, size=size, weights=weights)

    def with_channels(self, own: Statistics | None) -> InitialBackbone:
        """Return the backbone for images of as many channels as `own` has statistics of; None for pictures.

        One for pictures becomes one for bands, normalised by `own`: its first convolution is adapted as timm does.
        Raises ConfigError for other pairs of different numbers.
        """
        channels = len(own[0]) if own else RGB
        if channels == self.channels:
            return self
        if own is None or self.channels != RGB:
            raise ConfigError(
                f"a backbone for images of {self.channels} channels can't take images of {channels}: start from one "
                f"for {channels}, or from scratch."
            )
        model = create_timm_model(self.name, self.size, channels=channels)
        weights = self.weights and adapt_weights(model, self.weights, self.name)
        return dataclasses.replace(self, statistics=own, weights=weights)


def backbone_from_artifact(artifact: Artifact) -> InitialBackbone:
    """Return the backbone of a stage, a teacher or the student. Raises ConfigError if the artifact has none."""
    if artifact.has(ABOUT):
        about = artifact.load(ABOUT, read_json)
        weights = artifact.load(WEIGHTS, read_tensors)[1]
        return InitialBackbone(about["backbone"], about["image_size"], (about["mean"], about["std"]), weights)
    about = artifact.load(MODEL, read_json) if artifact.has(MODEL) else {}
    if about.get("format") == NETWORK:
        tensors = artifact.load(MODEL_WEIGHTS, read_tensors)[1]
        names = [name for name in tensors if name.startswith(NETWORK_PREFIX)]
        weights = {name.removeprefix(NETWORK_PREFIX): tensors[name] for name in names}
        mean, std = ((tensors[f"backbone.{name}"].flatten() / 255).tolist() for name in ("mean", "std"))
        return InitialBackbone(about["backbone"], about["image_size"], (mean, std), weights)
    if about.get("format") == "timm_classifier":
        tensors = artifact.load(MODEL_WEIGHTS, read_tensors)[1]
        weights = match_weights(create_timm_model(about["model"], about["size"]), tensors, str(artifact))
        return InitialBackbone(about["model"], about["size"], (about["mean"], about["std"]), weights)
    raise ConfigError(
        f"{artifact}: holds no timm backbone to start from; the student, stages, and teachers with a timm backbone do."
    )


def random_backbone(name: str, size: int, own: Statistics | None = None) -> InitialBackbone:
    """Return a backbone whose weights are drawn when it is built. `own`: statistics of bands; None for pictures."""
    return InitialBackbone(name, size, own or statistics(name), None)


def backbone_from_weights(name: str, size: int, weights: str) -> InitialBackbone:
    """Return a backbone with published weights, or those of a file: see `pipeline.models.weights.find_weights`."""
    model = create_timm_model(name, size)
    load_weights(model, name, weights)
    return InitialBackbone(name, size, statistics(name), model.state_dict())


def backbone_from_config(
    config: StartConfig, inputs: Inputs, seed: int, own: Statistics | None = None
) -> InitialBackbone:
    """Return the backbone that a recipe names, for its size of images. Random weights are those of the seed.

    `own`: see `InitialBackbone.with_channels`, which raises ConfigError if the backbone can't take the images.
    """
    if config.step is not None:
        return backbone_from_artifact(inputs[config.step]).resized(config.image_size).with_channels(own)
    assert config.backbone
    if config.weights:
        return backbone_from_weights(config.backbone, config.image_size, config.weights).with_channels(own)
    torch.manual_seed(seed)
    start = random_backbone(config.backbone, config.image_size, own)
    return dataclasses.replace(start, weights=start.build().model.state_dict())


def save_backbone(backbone: Backbone, folder: Path) -> None:
    """Save the backbone in the folder, which is made, under timm's names."""
    folder.mkdir(exist_ok=True)
    write_tensors(folder / WEIGHTS, backbone.model.state_dict())
    mean, std = ((tensor.flatten() / 255).tolist() for tensor in (backbone.mean, backbone.std))
    write_json(folder / ABOUT, {"backbone": backbone.name, "image_size": backbone.size, "mean": mean, "std": std})
