"""The step that trains a backbone on the labels of the images that self-supervised methods are given without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.finetuning import network_of
from ingest.dataset import IngestedSet
from ingest.pool import pool_keys
from ingest.true_labels import true_label_dataset
from pipeline.models.encoder import Encoder
from pipeline.models.initial import backbone_from_config, save_backbone
from pipeline.recipe.augment import AugmentConfig
from pipeline.recipe.base import FitConfig
from pipeline.recipe.evaluation import StartConfig
from pipeline.steps.artifact import Inputs
from tasks.training import TrainingPlan, WeightedSum, train_network


def train(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Train a network on all labels that the set `config["set"]` has of the images of a pool, or of a share of them,
    and leave its backbone as a stage does.

    `config`: `name`, `start`, `set`, `pool` (the step that says which images there are), `share`, `supervised` (a
    schedule), `width`, `proposals` and `seed`. DataError if none of the images has a label.
    """
    start, seed = backbone_from_config(StartConfig.model_validate(config["start"]), inputs, config["seed"]), config["seed"]
    found = IngestedSet(inputs[f"data.{config['set']}"])
    heads = {task: task for task in found.spaces}
    chosen = pool_keys(inputs[config["pool"]], config["share"], seed)
    others = {key for shard in found.images("train").shards for key in shard.keys} - chosen
    dataset = true_label_dataset(found, "train", heads, others)
    network = network_of(start, found.spaces, config, blank=False, seed=seed)
    fit = FitConfig.model_validate(config["supervised"])
    plan = TrainingPlan(config["name"], fit, AugmentConfig(), seed, out)
    combine = WeightedSum(dict.fromkeys(heads, 1.0))
    trained = train_network(network, combine, dataset, plan, inputs.runtime)
    encoder = Encoder(start.name, start.size, start.statistics)
    encoder.load_weights(network.backbone.model.cpu().state_dict())
    save_backbone(encoder, out)
    return {"images": len(dataset), "steps": fit.total_steps(len(dataset)), **trained.counts()}
