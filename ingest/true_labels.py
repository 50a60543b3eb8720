"""Which images and labels a network is trained or scored on. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray

import tasks
from ingest.dataset import IngestedSet
from pipeline.data.dataset import Layer, Library, Shelf
from pipeline.errors import ConfigError
from pipeline.storage.root import in_parallel
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import LabelSpace, read_labels

CLASSES = "classification"
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
    """For every image of a `truth_library`, the number of its class by this head, of which it has a label."""
    found = in_parallel(lambda shelf: _class_numbers(shelf, head), library.shelves)
    return np.concatenate([np.empty(0, np.int64), *found])


def _class_numbers(shelf: Shelf, head: str) -> NDArray[np.int64]:
    (layer,) = shelf.layers[head]
    table = read_labels(layer.file, ["key", "top"])
    layer.check(shelf.images, table.column("key").to_pylist())
    numbers: NDArray[np.int64] = (
        table.column("top").take([layer.row(row) for row in shelf.rows]).to_numpy().astype(np.int64)
    )
    return numbers


def train_classes(sets: Mapping[str, IngestedSet]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes that training images of these sets are labelled with, and by the key of each labelled one the number
    of its class. ConfigError unless the sets have class labels of one kind.
    """
    names = class_names(list(sets), {name: found.spaces for name, found in sets.items()})
    classes: dict[str, int] = {}
    for found in sets.values():
        if CLASSES in found.spaces:
            library = truth_library(found, "train", {CLASSES: CLASSES})
            classes |= dict(zip(library.keys(), class_numbers(library, CLASSES).tolist(), strict=True))
    return names, classes


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


def class_names(data: Sequence[str], spaces: Mapping[str, Mapping[str, LabelSpace]]) -> tuple[str, ...]:
    """The classes of the labelled images of sets, given the label spaces of all sets by task. ConfigError unless they
    have class labels of one kind.
    """
    kinds = {spaces[name]["classification"] for name in data if "classification" in spaces[name]}
    if len(kinds) != 1:
        raise ConfigError(f"the sets {', '.join(data)} have {len(kinds)} kinds of class labels; one is needed.")
    return kinds.pop().classes
