"""BatchLoader: batches that depend on seed and step alone, and can be made again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.data.dataset import DatasetShard, ImageDataset
from pipeline.data.loader import Batch, BatchLoader, LoaderConfig, collate_samples
from pipeline.errors import DataError
from pipeline.recipe.augment import AugmentConfig
from tests.augment import NO_AUGMENTATION
from tests.pipeline.data.flat_labels import KINDS, kind, relabel

MakeDatasetShard = Callable[..., DatasetShard]
Noise = Callable[..., NDArray[np.uint8]]


def loader_of(
    dataset: ImageDataset, seed: int = 1, batch: int = 5, augment: AugmentConfig | None = None
) -> BatchLoader:
    collate = {
        "kind": lambda values, valid: torch.from_numpy(np.stack([value["probs"] for value in values])),
        "depth": lambda values, valid: torch.from_numpy(np.stack([value["depth"] for value in values])),
    }
    config = LoaderConfig(32, "stretch", batch, seed, augment or AugmentConfig(), threads=3)
    return BatchLoader(dataset, collate, config)


def batches(loader: BatchLoader, count: int, start: int = 0) -> list[Batch]:
    """Return the first batches of a stream, each whole."""
    return [local.split(1)[0] for local in itertools.islice(loader.batches(start), count)]


def same(one: Batch, other: Batch) -> bool:
    heads = one.targets.keys() == other.targets.keys() and all(
        torch.equal(one.targets[head][part], other.targets[head][part])
        for head in one.targets
        for part in one.targets[head]
    )
    return heads and one.keys == other.keys and torch.equal(one.images, other.images)


def test_batch_loader_refuses_a_foreign_key(dataset: ImageDataset, tmp_path: Path) -> None:
    shard = dataset.shards[0]
    keys = [*shard.images.keys[:4], "0123456789abcdef"]
    broken = relabel(shard, tmp_path / "x.parquet", range(5), keys)
    with pytest.raises(DataError, match="row 4 holds key '0123456789abcdef'"):
        next(loader_of(broken).batches(0))


def test_batch_loader_gives_every_image_once_in_an_epoch(dataset: ImageDataset) -> None:
    orders = [dataset.order(3, epoch) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(12)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    keys = [key for batch in itertools.islice(loader_of(dataset, batch=4).batches(0), 3) for key in batch.keys]
    assert len(set(keys)) == 12


def test_batches_continue_over_the_end_of_an_epoch(dataset: ImageDataset) -> None:
    keys = [key for batch in itertools.islice(loader_of(dataset, batch=5).batches(0), 12) for key in batch.keys]
    epochs = [tuple(keys[start : start + 12]) for start in range(0, 60, 12)]
    assert [len(set(epoch)) for epoch in epochs] == [12] * 5
    assert len(set(epochs)) == 5, "every epoch has an order of its own"


def test_batches_do_not_depend_on_how_images_are_spread_over_shards(
    make_dataset_shard: MakeDatasetShard, noise: Noise
) -> None:
    def spread(*counts: int) -> list[Batch]:
        """Twelve images with their labels, so many in each shard, the last first."""
        numbers = iter(range(12))
        split = [list(itertools.islice(numbers, count)) for count in counts]
        shards = [
            make_dataset_shard(
                f"{counts}-{place}", [noise(n) for n in part], {"kind": (KINDS, [kind(n) for n in part])}
            )
            for place, part in enumerate(split)
        ]
        return batches(loader_of(ImageDataset(shards[::-1]), batch=5), 5)

    one, other, third = spread(12), spread(5, 3, 4), spread(1, 10, 1)
    assert all(same(a, b) for a, b in zip(one, other, strict=True))
    assert all(same(a, b) for a, b in zip(one, third, strict=True))


def test_batches_are_the_same_for_the_same_seed(dataset: ImageDataset) -> None:
    one, again, other = (batches(loader_of(dataset, seed), 4) for seed in (1, 1, 2))
    assert all(same(a, b) for a, b in zip(one, again, strict=True))
    assert not any(same(a, b) for a, b in zip(one, other, strict=True))


def test_batch_of_a_step_is_that_of_the_stream(dataset: ImageDataset) -> None:
    loader = loader_of(dataset)
    for number, batch in enumerate(batches(loader, 7)):
        assert same(batch, loader.batch(number))


def test_batches_from_a_later_step_are_those_of_the_whole_stream(dataset: ImageDataset) -> None:
    whole = batches(loader_of(dataset), 8)
    rest = batches(loader_of(dataset), 5, start=3)
    assert all(same(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_batch_loader_augments_an_image_differently_in_each_epoch(dataset: ImageDataset) -> None:
    epochs = batches(loader_of(dataset, batch=12), 2)
    by_key = [dict(zip(batch.keys, batch.images, strict=True)) for batch in epochs]
    assert by_key[0].keys() == by_key[1].keys()
    assert not any(torch.equal(by_key[0][key], by_key[1][key]) for key in by_key[0])


def test_batch_loader_augments_an_image_differently_in_the_same_slot(dataset: ImageDataset) -> None:
    shard = dataset.shards[0]
    one = ImageDataset([DatasetShard(shard.images, np.array([2]), shard.label_sources)])
    views = [image for batch in batches(loader_of(one, batch=2), 3) for image in batch.images]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(views, 2))


def test_batch_targets_leave_out_images_without_a_label(dataset: ImageDataset) -> None:
    batch = loader_of(dataset, batch=12, augment=NO_AUGMENTATION).batch(0)
    assert batch.images.shape == (12, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    positions = [int(index) for index in dataset.order(1, 0)]
    odd = [place for place, position in enumerate(positions) if position % 2]
    assert batch.targets["depth"]["rows"].tolist() == odd
    assert batch.targets["depth"]["target"][:, 0, 0].tolist() == [positions[place] + 1.0 for place in odd]
    assert batch.targets["depth"]["target"].shape == (6, 8, 8)  # a quarter of the input
    assert batch.targets["kind"]["rows"].tolist() == list(range(12))
    for place, position in enumerate(positions):
        assert batch.keys[place] == dataset.read(position)[0]


def test_collate_samples_gives_no_target_to_a_head_without_labels(dataset: ImageDataset) -> None:
    even = [dataset.sample(index, 32, "stretch", NO_AUGMENTATION, (0,)) for index in (0, 2)]
    collate = loader_of(dataset).collate
    assert set(collate_samples(even, collate).targets) == {"kind"}


def test_batch_loader_stops_at_an_image_that_cannot_be_read(dataset: ImageDataset) -> None:
    path = Path(dataset.shards[0].images.tar.path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"s0\.tar: cut short"):
        list(itertools.islice(loader_of(dataset).batches(0), 3))
