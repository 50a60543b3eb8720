"""What a stage starts from: a backbone by timm's name with its weights, and how its images are normalised."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from torch import Tensor

from pipeline import backbone as backbones
from pipeline.artifacts import Artifact, read_json, write_json
from pipeline.backbone import statistics
from pipeline.checkpoint import read_tensors, write_tensors
from pipeline.decode import decode
from pipeline.loader import Library
from pipeline.stages import SCRATCH, StageConfig
from selfsup.parts.encoder import Encoder, Statistics

WEIGHTS, ABOUT = "backbone.safetensors", "backbone.json"
SAMPLED, SIDE = 2000, 64
"""Images that mean and standard deviation are measured on, at most, and their size in pixels for that."""


@dataclasses.dataclass(frozen=True)
class Start:
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


def of_artifact(made: Artifact) -> Start:
    """The backbone of a student or a stage."""
    weights = made.load(WEIGHTS, read_tensors)[1]
    if made.has(ABOUT):
        about = made.load(ABOUT, read_json)
        return Start(about["backbone"], about["image_size"], (about["mean"], about["std"]), weights)
    about = made.load("model.json", read_json)
    return Start(about["backbone"], about["image_size"], statistics(about["backbone"]), weights)


def of_recipe(stage: StageConfig) -> Start:
    """The backbone of a stage that starts from scratch or from published weights."""
    assert stage.backbone
    assert stage.image_size
    assert stage.start
    found = statistics(stage.backbone)
    if stage.start == SCRATCH:
        return Start(stage.backbone, stage.image_size, found, None)
    model = backbones.create(stage.backbone, stage.image_size)
    backbones.load_weights(model, stage.backbone, stage.start)
    return Start(stage.backbone, stage.image_size, found, model.state_dict())


def adapted(start: Start, stage: StageConfig, images: Library) -> Start:
    """The start with the stage's own size and statistics."""
    size = stage.image_size or start.size
    weights = start.weights
    if weights is not None and size != start.size:
        model = backbones.create(start.name, size)
        weights = backbones.resampled(model, weights, f"stages.{stage.name}: start")
    found = measured(images) if stage.statistics == "data" else start.statistics
    return Start(start.name, size, found, weights)


def measured(images: Library) -> Statistics:
    """Mean and standard deviation per channel of up to SAMPLED images of a library, evenly spread over it."""
    sums, squares, count = np.zeros(3), np.zeros(3), 0
    for index in range(0, len(images), -(-len(images) // SAMPLED)):
        _, data = images.read(index)
        pixels = np.asarray(decode(data, at_least=(SIDE, SIDE)).resize((SIDE, SIDE)), np.float64).reshape(-1, 3) / 255
        sums, squares, count = sums + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)


def leave(encoder: Encoder, size: int, folder: Path) -> None:
    """Leave a backbone for what comes next, under timm's names."""
    write_tensors(folder / WEIGHTS, encoder.model.state_dict())
    mean, std = ((tensor.flatten() / 255).tolist() for tensor in (encoder.mean, encoder.std))
    write_json(folder / ABOUT, {"backbone": encoder.name, "image_size": size, "mean": mean, "std": std})
