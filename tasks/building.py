"""Building a network from a recipe's words."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.models.backbone import load_weights
from pipeline.stores.labels import LabelSpace
from pipeline.recipe.teacher import TrainingConfig
from tasks.network import Network, NetworkConfig


def build_network(config: TrainingConfig, spaces: Mapping[str, LabelSpace], seed: int) -> Network:
    """A network with fresh heads for `spaces`, the backbone started as the recipe says; the seed decides the rest."""
    network = Network(
        NetworkConfig(
            backbone=config.backbone,
            image_size=config.image_size,
            width=config.width,
            proposals=config.proposals,
            heads={name: space.to_json() for name, space in spaces.items()},
            seed=seed,
        )
    )
    if config.weights:
        load_weights(network.backbone.model, config.backbone, config.weights)
    return network
