"""ImageDataset: a strict join of images and labels, and an order that depends on the seed alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.data import dataset as datasets
from pipeline.data.dataset import DatasetShard, ImageDataset, LabelSource, check_joined
from pipeline.errors import DataError
from pipeline.stores.images import ImageShard
from pipeline.stores.label_writer import LabelWriter, store_metadata
from tests.augment import NO_AUGMENTATION
from tests.disk import stored
from tests.pipeline.data.flat_labels import DEPTH, flat, relabel

Noise = Callable[..., NDArray[np.uint8]]


def test_image_dataset_has_each_image_with_its_own_labels(dataset: ImageDataset) -> None:
    assert len(dataset) == 12
    assert [dataset.locate(index) for index in (0, 4, 5, 8, 11)] == [(0, 0), (0, 4), (1, 0), (2, 0), (2, 3)]
    for index in range(12):
        values = dataset.values(index)
        assert values["kind"]["probs"].argmax() == index % 4
        assert ("depth" in values) == bool(index % 2)
        if index % 2:
            assert values["depth"]["depth"][0, 0] == index + 1


def test_image_dataset_leaves_out_rows_that_a_shard_does_not_list(dataset: ImageDataset) -> None:
    first, second, third = dataset.shards
    fewer = ImageDataset(
        [
            DatasetShard(first.images, np.array([1, 3]), first.label_sources),
            DatasetShard(second.images, np.array([], int), second.label_sources),
            third,
        ]
    )
    assert len(fewer) == 6
    assert [fewer.values(index)["kind"]["probs"].argmax() for index in range(3)] == [1, 3, 0]
    assert fewer.read(0)[0] == first.images.keys[1]
    assert sorted(fewer.order(0, 0).tolist()) == list(range(6))


def test_label_source_in_another_order_is_refused(dataset: ImageDataset, tmp_path: Path) -> None:
    shard = dataset.shards[0]
    keys = shard.images.keys
    with pytest.raises(DataError, match=rf"x\.parquet: row 1 holds key '{keys[2]}' where shard s0 has '{keys[1]}'"):
        relabel(shard, tmp_path / "x.parquet", [0, 2, 1, 3, 4]).values(0)


def test_label_source_that_is_short_is_refused(dataset: ImageDataset, tmp_path: Path) -> None:
    shard = dataset.shards[0]
    says = rf"4 rows for the 5 images of shard s0; first unmatched key '{shard.images.keys[4]}'"
    with pytest.raises(DataError, match=says):
        relabel(shard, tmp_path / "x.parquet", [0, 1, 2, 3]).values(0)


def test_label_source_that_lacks_a_key_is_refused(dataset: ImageDataset, tmp_path: Path) -> None:
    shard = dataset.shards[0]
    keys = shard.images.keys
    with pytest.raises(DataError, match=rf"row 2 holds key '{keys[3]}' where shard s0 has '{keys[2]}'"):
        relabel(shard, tmp_path / "x.parquet", [0, 1, 3, 4]).values(0)


def test_first_label_source_with_a_label_wins(dataset: ImageDataset, tmp_path: Path) -> None:
    shard = dataset.shards[0]
    path = tmp_path / "second.parquet"
    writer = LabelWriter(path, DEPTH, store_metadata(DEPTH, "teacher", shard.images.sha256))
    for key in shard.images.keys:
        writer.add(key, DEPTH.encode(flat(100)))
    writer.close()
    label_sources = {"depth": (*shard.label_sources["depth"], LabelSource(stored(path), DEPTH))}
    both = ImageDataset([DatasetShard(shard.images, shard.rows, label_sources)])
    assert [both.values(index)["depth"]["depth"][0, 0] for index in range(5)] == [100, 2, 100, 4, 100]
    assert label_sources["depth"][0].has_label(shard.images).tolist() == [False, True, False, True, False]


def test_label_source_has_label_refuses_a_file_of_another_length(dataset: ImageDataset, tmp_path: Path) -> None:
    images = dataset.shards[0].images
    writer = LabelWriter(tmp_path / "short.parquet", DEPTH, store_metadata(DEPTH, "teacher", images.sha256))
    writer.add(images.keys[0], DEPTH.encode(flat(1)))
    writer.close()
    with pytest.raises(DataError, match=f"first unmatched key '{images.keys[1]}'"):
        LabelSource(stored(tmp_path / "short.parquet"), DEPTH).has_label(images)


def test_order_shuffles_many_shards_by_windows(
    make_images: Callable[..., ImageShard], noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "SHUFFLE_WINDOW", 2)
    shards = [make_images(f"s{number}", [noise(10 * number + n) for n in range(number + 1)]) for number in range(5)]
    dataset = ImageDataset([DatasetShard(shard, np.arange(len(shard)), {}) for shard in shards])
    order = dataset.order(0, 0)
    assert sorted(order.tolist()) == list(range(15))
    numbers = [dataset.locate(int(index))[0] for index in order]
    runs = [set(run) for _, run in itertools.groupby(numbers, key=lambda n: window_of(numbers, n))]
    assert [len(run) for run in runs] == [2, 2, 1]
    firsts = {dataset.locate(int(dataset.order(0, epoch)[0]))[0] for epoch in range(30)}
    assert len(firsts) > 2, "the windows themselves are not shuffled"


def window_of(numbers: Sequence[int], number: int) -> int:
    """Return which window of two shards a shard is in, by the order in which shards first appear."""
    return list(dict.fromkeys(numbers)).index(number) // 2


def test_sample_without_augmentation_is_the_image_itself(dataset: ImageDataset, noise: Noise) -> None:
    np.testing.assert_array_equal(dataset.sample(3, 32, "stretch", NO_AUGMENTATION, (0,)).image, noise(3))


def test_subset_has_its_images_and_labels_in_their_order(dataset: ImageDataset) -> None:
    chosen = [len(dataset) - 1, 0, 2]
    part = dataset.subset(chosen)
    assert len(part) == 3
    for index, original in enumerate(sorted(chosen)):
        assert part.read(index) == dataset.read(original)
        found, wanted = part.values(index), dataset.values(original)
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[head][name], wanted[head][name]) for head in found for name in found[head])
    assert len(dataset.subset([])) == 0
    assert len(dataset.subset(range(len(dataset)))) == len(dataset)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "c", "b"], r"row 1 holds key 'c' where shard shard-7 has 'b'"),
        (["a", "b"], r"2 rows for the 3 images of shard shard-7; first unmatched key 'c'"),
        (["a", "b", "c", "d"], r"4 rows for the 3 images of shard shard-7; first unmatched key 'd'"),
        (["b", "c"], r"row 0 holds key 'b' where shard shard-7 has 'a'"),
        ([], r"0 rows for the 3 images of shard shard-7; first unmatched key 'a'"),
    ],
)
def test_check_joined_names_shard_and_key(labels: list[str], message: str) -> None:
    with pytest.raises(DataError, match=rf"x\.parquet: {message}"):
        check_joined(["a", "b", "c"], labels, "shard-7", Path("x.parquet"))


def test_check_joined_accepts_equal_keys() -> None:
    check_joined(["a", "b"], ["a", "b"], "shard-7", Path("x.parquet"))
