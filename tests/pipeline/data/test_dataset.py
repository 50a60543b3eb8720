"""Images and labels on disk: a join that is strict, and an order that depends on the seed alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.data import dataset as libraries
from pipeline.data.dataset import Layer, Library, Shelf
from pipeline.errors import DataError
from pipeline.recipe.augment import NOTHING
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import LabelWriter, about_store
from tests.disk import stored
from tests.pipeline.data.shelves import DEPTH, flat, relabel

Noise = Callable[..., NDArray[np.uint8]]


def test_every_position_is_an_image_with_its_own_labels(library: Library) -> None:
    assert len(library) == 12
    assert [library.locate(index) for index in (0, 4, 5, 8, 11)] == [(0, 0), (0, 4), (1, 0), (2, 0), (2, 3)]
    for index in range(12):
        values = library.values(index)
        assert values["kind"]["probs"].argmax() == index % 4
        assert ("depth" in values) == bool(index % 2)
        if index % 2:
            assert values["depth"]["depth"][0, 0] == index + 1


def test_rows_that_may_not_be_used_are_not(library: Library) -> None:
    first, second, third = library.shelves
    fewer = Library(
        [
            Shelf(first.images, np.array([1, 3]), first.layers),
            Shelf(second.images, np.array([], int), second.layers),
            third,
        ]
    )
    assert len(fewer) == 6
    assert [fewer.values(index)["kind"]["probs"].argmax() for index in range(3)] == [1, 3, 0]
    assert fewer.read(0)[0] == first.images.keys[1]
    assert sorted(fewer.order(0, 0).tolist()) == list(range(6))


def test_labels_in_another_order_are_refused(library: Library, tmp_path: Path) -> None:
    shelf = library.shelves[0]
    keys = shelf.images.keys
    with pytest.raises(DataError, match=rf"x\.parquet: row 1 holds key '{keys[2]}' where shard s0 has '{keys[1]}'"):
        relabel(shelf, tmp_path / "x.parquet", [0, 2, 1, 3, 4]).values(0)


def test_a_label_file_that_is_short_is_refused(library: Library, tmp_path: Path) -> None:
    shelf = library.shelves[0]
    says = rf"4 rows for the 5 images of shard s0; first unmatched key '{shelf.images.keys[4]}'"
    with pytest.raises(DataError, match=says):
        relabel(shelf, tmp_path / "x.parquet", [0, 1, 2, 3]).values(0)


def test_a_label_file_that_lacks_a_key_is_refused(library: Library, tmp_path: Path) -> None:
    shelf = library.shelves[0]
    keys = shelf.images.keys
    with pytest.raises(DataError, match=rf"row 2 holds key '{keys[3]}' where shard s0 has '{keys[2]}'"):
        relabel(shelf, tmp_path / "x.parquet", [0, 1, 3, 4]).values(0)


def test_the_first_layer_with_a_label_wins(library: Library, tmp_path: Path) -> None:
    shelf = library.shelves[0]
    path = tmp_path / "second.parquet"
    writer = LabelWriter(path, DEPTH, about_store(DEPTH, "teacher", shelf.images.sha256))
    for key in shelf.images.keys:
        writer.add(key, DEPTH.encode(flat(100)))
    writer.close()
    layers = {"depth": (*shelf.layers["depth"], Layer(stored(path), DEPTH))}
    both = Library([Shelf(shelf.images, shelf.rows, layers)])
    assert [both.values(index)["depth"]["depth"][0, 0] for index in range(5)] == [100, 2, 100, 4, 100]
    assert layers["depth"][0].has_label(shelf.images).tolist() == [False, True, False, True, False]


def test_a_label_file_of_another_length_is_refused_before_rows_are_counted(library: Library, tmp_path: Path) -> None:
    images = library.shelves[0].images
    writer = LabelWriter(tmp_path / "short.parquet", DEPTH, about_store(DEPTH, "teacher", images.sha256))
    writer.add(images.keys[0], DEPTH.encode(flat(1)))
    writer.close()
    with pytest.raises(DataError, match=f"first unmatched key '{images.keys[1]}'"):
        Layer(stored(tmp_path / "short.parquet"), DEPTH).has_label(images)


def test_many_shards_are_shuffled_by_windows(
    make_images: Callable[..., ImageShard], noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "WINDOW", 2)
    shards = [make_images(f"s{number}", [noise(10 * number + n) for n in range(number + 1)]) for number in range(5)]
    library = Library([Shelf(shard, np.arange(len(shard)), {}) for shard in shards])
    order = library.order(0, 0)
    assert sorted(order.tolist()) == list(range(15))
    numbers = [library.locate(int(index))[0] for index in order]
    runs = [set(found) for _, found in itertools.groupby(numbers, key=lambda n: window_of(numbers, n))]
    assert [len(run) for run in runs] == [2, 2, 1]
    firsts = {library.locate(int(library.order(0, epoch)[0]))[0] for epoch in range(30)}
    assert len(firsts) > 2, "the windows themselves are not shuffled"


def window_of(numbers: Sequence[int], number: int) -> int:
    """Which window of two shards a shard is in, by the order in which shards are first met."""
    return list(dict.fromkeys(numbers)).index(number) // 2


def test_a_sample_is_the_image_itself_where_nothing_is_drawn(library: Library, noise: Noise) -> None:
    np.testing.assert_array_equal(library.sample(3, 32, NOTHING, (0,)).image, noise(3))


def test_a_part_of_a_library_has_its_images_and_labels_in_their_order(library: Library) -> None:
    chosen = [len(library) - 1, 0, 2]
    part = library.only(chosen)
    assert len(part) == 3
    for mine, theirs in enumerate(sorted(chosen)):
        assert part.read(mine) == library.read(theirs)
        found, wanted = part.values(mine), library.values(theirs)
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[head][name], wanted[head][name]) for head in found for name in found[head])
    assert len(library.only([])) == 0
    assert len(library.only(range(len(library)))) == len(library)
