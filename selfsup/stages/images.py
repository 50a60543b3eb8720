"""The images that a stage sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.artifacts import Inputs
from pipeline.augment import generator
from pipeline.errors import ConfigError
from pipeline.loader import Layer, Library, Shelf
from pipeline.stages import StageConfig
from tasks.pool import pool_shards

FEWEST = 2
"""Images that there have to be."""
NOTHING: Mapping[str, tuple[Layer, ...]] = {}


def images_of(stage: StageConfig, inputs: Inputs, seed: int) -> Library:
    """The images of the stage's pool, or the stage's share of them. ConfigError if they are fewer than two."""
    pool = inputs[f"pool.{stage.name}"]
    shelves = [Shelf(shard, rows, NOTHING) for _, shard, rows in pool_shards(pool, inputs.of_kind("data"))]
    library = Library(_part(shelves, stage.share, seed) if stage.share < 1 else shelves)
    if len(library) < FEWEST:
        raise ConfigError(
            f"stages.{stage.name}: {len(library)} images to train on in {', '.join(stage.data)}: {FEWEST} or more are "
            "needed."
        )
    return library


def _part(shelves: Sequence[Shelf], share: float, seed: int) -> list[Shelf]:
    """The shelves with a share of their images, drawn by the images' keys."""
    keys = sorted(key for shelf in shelves for key in keys_of(shelf))
    chosen = set(_order(keys, seed)[: round(share * len(keys))])
    kept = [np.array([key in chosen for key in keys_of(shelf)]) for shelf in shelves]
    return [dataclasses.replace(shelf, rows=shelf.rows[rows]) for shelf, rows in zip(shelves, kept, strict=True)]


def _order(keys: list[str], seed: int) -> list[str]:
    """Keys in an order of their own: the beginning of it is a part of any longer beginning."""
    return [keys[place] for place in generator(seed, len(keys)).permutation(len(keys))]


def keys_of(shelf: Shelf) -> list[str]:
    """The keys of a shelf's images."""
    return [shelf.images.keys[row] for row in shelf.rows]
