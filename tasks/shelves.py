"""Which images and labels a network is trained or scored on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

import numpy as np
from numpy.typing import NDArray

import tasks
from pipeline.images import ImageShard
from pipeline.loader import Layer, Library, Shelf
from pipeline.roots import in_parallel
from tasks.ingest import IngestedSet

Layers = Callable[[ImageShard], Mapping[str, tuple[Layer, ...]]]


def shelve(found: IngestedSet, split: str, layers: Layers, without: Set[str] = frozenset()) -> list[Shelf]:
    """The shards of a split, with `layers(shard)` as their labels; the keys in `without` are left out."""
    shelves = []
    for shard in found.images(split).shards:
        rows = np.flatnonzero([key not in without for key in shard.keys])
        shelves.append(Shelf(shard, rows, layers(shard)))
    return shelves


def truth_library(found: IngestedSet, split: str, heads: Mapping[str, str], without: Set[str] = frozenset()) -> Library:
    """Images of a split with a true label for any of `heads` (task by head)."""
    readers = {head: tasks.label(found.spaces[task]) for head, task in heads.items()}

    def layers(shard: ImageShard) -> dict[str, tuple[Layer, ...]]:
        return {head: (Layer(found.truth(task, split, shard.name), readers[head]),) for head, task in heads.items()}

    return Library(in_parallel(labelled, shelve(found, split, layers, without)))


def class_numbers(library: Library, head: str) -> NDArray[np.int64]:
    """For every image of a library, the number of its likeliest class by this head, of which it has a label."""
    return np.array([library.values(index)[head]["probs"].argmax() for index in range(len(library))], np.int64)


def labelled(shelf: Shelf) -> Shelf:
    """The shelf with only the rows that have a label in one of its layers."""
    known = np.zeros(len(shelf.images), dtype=bool)
    for layers in shelf.layers.values():
        for layer in layers:
            known |= layer.has_label(shelf.images)
    return Shelf(shelf.images, shelf.rows[known[shelf.rows]], shelf.layers)


def held_out_keys(found: IngestedSet) -> set[str]:
    """Keys of all images of the set that are not for training."""
    return {
        key for split in found.splits if split != "train" for shard in found.images(split).shards for key in shard.keys
    }
