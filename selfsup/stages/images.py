"""The images that a stage sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set

import numpy as np

from pipeline.steps.artifact import Inputs
from pipeline.errors import ConfigError
from pipeline.data.dataset import Layer, Library, Shelf
from pipeline.recipe.stage import StageConfig
from ingest.pool import pool_keys, pool_shards

FEWEST = 2
"""Images that there have to be."""
NOTHING: Mapping[str, tuple[Layer, ...]] = {}


def images_of(stage: StageConfig, inputs: Inputs, seed: int) -> Library:
    """The images of the stage's pool, or the stage's share of them. ConfigError if they are fewer than two."""
    pool = inputs[f"pool.{stage.name}"]
    shelves = [Shelf(shard, rows, NOTHING) for _, shard, rows in pool_shards(pool, inputs.of_kind("data"))]
    if stage.share < 1:
        chosen = pool_keys(pool, stage.share, seed)
        shelves = [_part(shelf, chosen) for shelf in shelves]
    library = Library(shelves)
    if len(library) < FEWEST:
        raise ConfigError(f"{len(library)} images to train on in {', '.join(stage.data)}: {FEWEST} or more are needed.")
    return library


def _part(shelf: Shelf, chosen: Set[str]) -> Shelf:
    """The shelf with the images of these keys alone."""
    kept = np.array([shelf.images.keys[row] in chosen for row in shelf.rows], bool)
    return dataclasses.replace(shelf, rows=shelf.rows[kept])
