"""Step that trains a backbone with labels, on the same images that self-supervised methods see without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.finetuning import build_finetuning_network
from ingest.dataset import IngestedSet
from ingest.pool import pool_keys
from ingest.resized import read_resized
from ingest.true_labels import true_label_dataset
from pipeline.data.statistics import own_statistics
from pipeline.models.initial import backbone_from_config, save_backbone
from pipeline.recipe.augment import AugmentConfig
from pipeline.recipe.base import FitConfig
from pipeline.recipe.evaluation import StartConfig
from pipeline.steps.artifact import Inputs
from tasks.training import TrainingPlan, WeightedSum, fitted_space, train_network


def train(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Train a network on all labels of a share of a pool's images, and save its backbone as a stage does.

    Args:
        config: `name`, `start`, `set` (which has the labels), `pool` (the step that lists the images), `share`,
            `supervised` (a schedule), `width`, `proposals` and `seed`.

    Raises DataError if none of the images has a label.
    """
    seed = config["seed"]
    labelled = IngestedSet(inputs[f"data.{config['set']}"])
    heads = {task: task for task in labelled.spaces}
    keys = pool_keys(inputs[config["pool"]], config["share"], seed)
    others = {key for shard in labelled.images("train").shards for key in shard.keys} - keys
    dataset = read_resized(true_label_dataset(labelled, "train", heads, others), inputs)
    start = backbone_from_config(StartConfig.model_validate(config["start"]), inputs, seed, own_statistics(dataset))
    spaces = {task: fitted_space(space, dataset, task) for task, space in labelled.spaces.items()}
    network = build_finetuning_network(start, spaces, config, blank=False, seed=seed)
    fit = FitConfig.model_validate(config["supervised"])
    plan = TrainingPlan(config["name"], fit, AugmentConfig(), seed, out)
    combine = WeightedSum(dict.fromkeys(heads, 1.0))
    trained = train_network(network, combine, dataset, plan, inputs.runtime)
    save_backbone(network.backbone.cpu(), out)
    return {"images": len(dataset), **trained.counts()}
