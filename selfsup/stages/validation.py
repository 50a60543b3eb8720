"""Validation of a stage: nearest neighbours among labelled training images classify held-out ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ingest.dataset import IngestedSet
from ingest.true_labels import CLASSIFICATION, class_ids, held_out_keys, true_label_dataset
from ingest.validation import validation_sets
from pipeline.data.dataset import ImageDataset
from pipeline.models.features import extract_features
from pipeline.models.neighbors import nearest_neighbors
from pipeline.recipe.stage import StageConfig
from pipeline.steps.artifact import Inputs
from pipeline.training.autotune import ComputeConfig
from pipeline.training.validation import Validation
from selfsup.stages.objective import StageObjective

METRIC = "knn accuracy"
MOST_IMAGES = 2000
"""Labelled images of each split that are used, at most."""


def stage_validation(stage: StageConfig, inputs: Inputs) -> Validation | None:
    """Return how a stage is measured on the way; None if it is not to be.

    On the first of its sets that has class labels for training and for validation. Raises ConfigError if none has.
    """
    if stage.validate is None:
        return None
    sets = {name: (name, IngestedSet(inputs[f"data.{name}"])) for name in stage.data}
    name, val = next(iter(validation_sets(sets, dict.fromkeys(sets, CLASSIFICATION), train=True).items()))
    ingested, runtime = sets[name][1], inputs.runtime
    train = _at_most(true_label_dataset(ingested, "train", {name: CLASSIFICATION}, held_out_keys(ingested)))
    val = _at_most(val)
    count = len(ingested.spaces[CLASSIFICATION].classes)
    known, true = (torch.from_numpy(class_ids(images, name)) for images in (train, val))

    def score(objective: nn.Module, compute: ComputeConfig) -> dict[str, float]:
        assert isinstance(objective, StageObjective)
        backbone = objective.method.backbone
        with compute.autocast():
            features = [extract_features(backbone, images, range(len(images)), runtime) for images in (train, val)]
        found = nearest_neighbors(features[0], known, count)(features[1]).argmax(dim=1)
        return {METRIC: float((found == true).float().mean())}

    return Validation(stage.validate, score, METRIC, "higher")


def _at_most(images: ImageDataset) -> ImageDataset:
    """Return MOST_IMAGES images at most, spread evenly over the dataset."""
    rows = np.linspace(0, len(images) - 1, min(len(images), MOST_IMAGES)).round().astype(np.int64)
    return images.subset(np.unique(rows))
