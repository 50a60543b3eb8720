"""A small image dataset."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.data.dataset import DatasetShard, ImageDataset
from tests.pipeline.data.flat_labels import DEPTH, KINDS, flat, kind

MakeDatasetShard = Callable[..., DatasetShard]
Noise = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def dataset(make_dataset_shard: MakeDatasetShard, noise: Noise) -> ImageDataset:
    """Three shards of 5, 3 and 4 images; every image has a kind, every other one a depth."""
    shards = []
    for name, start, count in (("s0", 0, 5), ("s1", 5, 3), ("s2", 8, 4)):
        numbers = range(start, start + count)
        labels = {
            "kind": (KINDS, [kind(number) for number in numbers]),
            "depth": (DEPTH, [flat(number + 1) if number % 2 else None for number in numbers]),
        }
        shards.append(make_dataset_shard(name, [noise(number) for number in numbers], labels))
    return ImageDataset(shards)
