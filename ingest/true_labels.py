"""Which images and labels a network is trained or scored on. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray

import tasks
from ingest.dataset import IngestedSet
from pipeline.data.dataset import DatasetShard, ImageDataset, LabelSource
from pipeline.errors import ConfigError
from pipeline.storage.root import in_parallel
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import LabelSpace, read_labels

CLASSIFICATION = "classification"
LabelSources = Callable[[ImageShard], Mapping[str, tuple[LabelSource, ...]]]


def dataset_shards(
    found: IngestedSet, split: str, label_sources: LabelSources, without: Set[str] = frozenset()
) -> list[DatasetShard]:
    """The shards of a split, with `label_sources(shard)` as their labels; the keys in `without` are left out."""
    shards = []
    for shard in found.images(split).shards:
        rows = np.flatnonzero([key not in without for key in shard.keys])
        shards.append(DatasetShard(shard, rows, label_sources(shard)))
    return shards


def true_label_dataset(
    found: IngestedSet, split: str, heads: Mapping[str, str], without: Set[str] = frozenset()
) -> ImageDataset:
    """Images of a split with a true label for any of `heads` (task by head)."""
    readers = {head: tasks.label(found.spaces[task]) for head, task in heads.items()}

    def label_sources(shard: ImageShard) -> dict[str, tuple[LabelSource, ...]]:
        return {
            head: (LabelSource(found.true_labels(task, split, shard.name), readers[head]),)
            for head, task in heads.items()
        }

    return ImageDataset(in_parallel(drop_unlabelled, dataset_shards(found, split, label_sources, without)))


def class_ids(dataset: ImageDataset, head: str) -> NDArray[np.int64]:
    """For every image of a `true_label_dataset`, the number of its class by this head, of which it has a label."""
    found = in_parallel(lambda shard: _class_numbers(shard, head), dataset.shards)
    return np.concatenate([np.empty(0, np.int64), *found])


def _class_numbers(shard: DatasetShard, head: str) -> NDArray[np.int64]:
    (source,) = shard.label_sources[head]
    table = read_labels(source.file, ["key", "top"])
    source.check(shard.images, table.column("key").to_pylist())
    numbers: NDArray[np.int64] = (
        table.column("top").take([source.row(row) for row in shard.rows]).to_numpy().astype(np.int64)
    )
    return numbers


def train_classes(sets: Mapping[str, IngestedSet]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes that training images of these sets are labelled with, and by the key of each labelled one the number
    of its class. ConfigError unless the sets have class labels of one kind.
    """
    names = class_names(list(sets), {name: found.spaces for name, found in sets.items()})
    classes: dict[str, int] = {}
    for found in sets.values():
        if CLASSIFICATION in found.spaces:
            dataset = true_label_dataset(found, "train", {CLASSIFICATION: CLASSIFICATION})
            classes |= dict(zip(dataset.keys(), class_ids(dataset, CLASSIFICATION).tolist(), strict=True))
    return names, classes


def drop_unlabelled(shard: DatasetShard) -> DatasetShard:
    """The shelf with only the rows that have a label in one of its layers."""
    known = np.zeros(len(shard.images), dtype=bool)
    for label_sources in shard.label_sources.values():
        for source in label_sources:
            known |= source.has_label(shard.images)
    return DatasetShard(shard.images, shard.rows[known[shard.rows]], shard.label_sources)


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
