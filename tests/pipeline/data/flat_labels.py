"""Labels of two tasks for small datasets, and a dataset with label rows of one's choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import tasks
from pipeline.data.dataset import DatasetShard, ImageDataset, LabelSource
from pipeline.stores.label_writer import LabelWriter, store_metadata
from pipeline.stores.labels import LabelSpace, Value
from tests.disk import stored

KINDS = tasks.label(LabelSpace("classification", ("a", "b", "c", "d")))
DEPTH = tasks.label(LabelSpace("depth"))


def kind(number: int) -> Value:
    """Return the classification label of image `number`: class `number % 4`."""
    probs = np.zeros(4, np.float32)
    probs[number % 4] = 1
    return {"probs": probs}


def flat(metres: float) -> Value:
    """Return a depth label that is the same everywhere."""
    return {"depth": np.full((8, 8), metres, np.float32)}


def relabel(shard: DatasetShard, path: Path, rows: Sequence[int], keys: Sequence[str] | None = None) -> ImageDataset:
    """Return a dataset of the shard whose label file has other rows: those of the images `rows`, under their `keys`."""
    writer = LabelWriter(path, KINDS, store_metadata(KINDS, "test", shard.images.sha256))
    for row in rows:
        writer.add((keys or shard.images.keys)[row], KINDS.encode(kind(row)))
    writer.close()
    return ImageDataset([DatasetShard(shard.images, shard.rows, {"kind": (LabelSource(stored(path), KINDS),)})])
