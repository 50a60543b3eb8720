"""Datasets of images with true labels, for training and scoring, and the classes of their images. No torch."""

from __future__ import annotations

import dataclasses
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
"""The task whose images have one class each."""
LabelSources = Callable[[ImageShard], Mapping[str, tuple[LabelSource, ...]]]
"""From an image shard to the sources of its labels, by head."""


def dataset_shards(
    ingested: IngestedSet, split: str, label_sources: LabelSources, without: Set[str] = frozenset()
) -> list[DatasetShard]:
    """Return the shards of a split with `label_sources(shard)` as their labels, without the images `without` (keys)."""
    shards = []
    for shard in ingested.images(split).shards:
        rows = np.flatnonzero([key not in without for key in shard.keys])
        shards.append(DatasetShard(shard, rows, label_sources(shard), channels=ingested.channels))
    return shards


def true_label_dataset(
    ingested: IngestedSet, split: str, heads: Mapping[str, str], without: Set[str] = frozenset()
) -> ImageDataset:
    """Return the images of a split with a true label for any of `heads` (task by head), without the keys `without`."""
    readers = {head: tasks.label(ingested.spaces[task]) for head, task in heads.items()}

    def label_sources(shard: ImageShard) -> dict[str, tuple[LabelSource, ...]]:
        return {
            head: (LabelSource(ingested.true_labels(task, split, shard.name), readers[head]),)
            for head, task in heads.items()
        }

    return ImageDataset(in_parallel(drop_unlabelled, dataset_shards(ingested, split, label_sources, without)))


def class_ids(dataset: ImageDataset, head: str) -> NDArray[np.int64]:
    """Return the class ids, int64 (N,), of the images of a `true_label_dataset`, all labelled for `head`."""
    ids = in_parallel(lambda shard: _class_ids(shard, head), dataset.shards)
    return np.concatenate([np.empty(0, np.int64), *ids])


def _class_ids(shard: DatasetShard, head: str) -> NDArray[np.int64]:
    (source,) = shard.label_sources[head]
    table = read_labels(source.file, ["key", "top"])
    source.check(shard.images, table.column("key").to_pylist())
    return table.column("top").take([source.label_row(row) for row in shard.rows]).to_numpy().astype(np.int64)


def train_classes(sets: Mapping[str, IngestedSet]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names of these sets, and the class ids of their labelled training images by key.

    Raises ConfigError unless the sets have class labels of one kind.
    """
    names = class_names(list(sets), {name: ingested.spaces for name, ingested in sets.items()})
    classes: dict[str, int] = {}
    for ingested in sets.values():
        if CLASSIFICATION in ingested.spaces:
            dataset = true_label_dataset(ingested, "train", {CLASSIFICATION: CLASSIFICATION})
            classes |= dict(zip(dataset.keys(), class_ids(dataset, CLASSIFICATION).tolist(), strict=True))
    return names, classes


def drop_unlabelled(shard: DatasetShard) -> DatasetShard:
    """Keep only the rows of the shard that have a label in one of its sources."""
    known = np.zeros(len(shard.images), dtype=bool)
    for head in shard.label_sources:
        known |= shard.has_label(head)
    return dataclasses.replace(shard, rows=shard.rows[known[shard.rows]])


def held_out_keys(ingested: IngestedSet) -> set[str]:
    """Return the keys of all images of the set outside its split "train"."""
    stores = [ingested.images(split) for split in ingested.splits if split != "train"]
    return {key for store in stores for shard in store.shards for key in shard.keys}


def class_names(data: Sequence[str], spaces: Mapping[str, Mapping[str, LabelSpace]]) -> tuple[str, ...]:
    """Return the class names of the sets `data`, given the label spaces, by task, of all sets.

    Raises ConfigError unless they have class labels of one kind.
    """
    kinds = {spaces[name][CLASSIFICATION] for name in data if CLASSIFICATION in spaces[name]}
    if len(kinds) != 1:
        sets = ", ".join(f"{name} ({', '.join(sorted(spaces[name]))})" if spaces[name] else name for name in data)
        raise ConfigError(f"the sets {sets} have {len(kinds)} kinds of class labels; one class per image is needed.")
    return kinds.pop().classes
