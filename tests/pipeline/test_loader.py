"""The loader: a join that is strict, an order that depends on the seed alone, and batches that can be made again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tasks
from pipeline import loader as loading
from pipeline.augment import NOTHING, AugmentConfig
from pipeline.errors import DataError
from pipeline.images import ImageShard
from pipeline.labels import LabelSpace, LabelWriter, Value, about_store
from pipeline.loader import Batch, Layer, Library, Loader, LoaderConfig, Shelf, collate_samples
from tests.disk import stored

MakeShelf = Callable[..., Shelf]
Noise = Callable[..., NDArray[np.uint8]]
KINDS = tasks.label(LabelSpace("classification", ("a", "b", "c", "d")))
DEPTH = tasks.label(LabelSpace("depth"))


def kind(number: int) -> Value:
    probs = np.zeros(4, np.float32)
    probs[number % 4] = 1
    return {"probs": probs}


def flat(metres: float) -> Value:
    return {"depth": np.full((8, 8), metres, np.float32)}


@pytest.fixture
def library(make_shelf: MakeShelf, noise: Noise) -> Library:
    """Three shards of 5, 3 and 4 images; every image has a kind, every other one a depth."""
    shelves = []
    for name, start, count in (("s0", 0, 5), ("s1", 5, 3), ("s2", 8, 4)):
        numbers = range(start, start + count)
        labels = {
            "kind": (KINDS, [kind(number) for number in numbers]),
            "depth": (DEPTH, [flat(number + 1) if number % 2 else None for number in numbers]),
        }
        shelves.append(make_shelf(name, [noise(number) for number in numbers], labels))
    return Library(shelves)


def loader_of(library: Library, seed: int = 1, batch: int = 5, augment: AugmentConfig | None = None) -> Loader:
    collate = {
        "kind": lambda values: torch.from_numpy(np.stack([value["probs"] for value in values])),
        "depth": lambda values: torch.from_numpy(np.stack([value["depth"] for value in values])),
    }
    return Loader(library, collate, LoaderConfig(32, batch, seed, augment or AugmentConfig(), threads=3))


def batches(loader: Loader, count: int, start: int = 0) -> list[Batch]:
    """The first batches of a stream, each whole."""
    return [share.cut(1)[0] for share in itertools.islice(loader.stream(start), count)]


def same(one: Batch, other: Batch) -> bool:
    heads = one.targets.keys() == other.targets.keys() and all(
        torch.equal(one.targets[head][part], other.targets[head][part])
        for head in one.targets
        for part in one.targets[head]
    )
    return heads and one.keys == other.keys and torch.equal(one.images, other.images)


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


def relabel(shelf: Shelf, path: Path, rows: Sequence[int], keys: Sequence[str] | None = None) -> Library:
    """A library of the shelf with other label rows."""
    writer = LabelWriter(path, KINDS, about_store(KINDS, "test", shelf.images.sha256))
    for row in rows:
        writer.add((keys or shelf.images.keys)[row], KINDS.encode(kind(row)))
    writer.close()
    return Library([Shelf(shelf.images, shelf.rows, {"kind": (Layer(stored(path), KINDS),)})])


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


def test_a_foreign_key_is_refused_when_training_as_well(library: Library, tmp_path: Path) -> None:
    shelf = library.shelves[0]
    keys = [*shelf.images.keys[:4], "0123456789abcdef"]
    broken = relabel(shelf, tmp_path / "x.parquet", range(5), keys)
    with pytest.raises(DataError, match="row 4 holds key '0123456789abcdef'"):
        next(loader_of(broken).stream(0))


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


def test_every_image_comes_once_in_an_epoch(library: Library) -> None:
    orders = [library.order(3, epoch) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(12)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    keys = [key for batch in itertools.islice(loader_of(library, batch=4).stream(0), 3) for key in batch.keys]
    assert len(set(keys)) == 12


def test_batches_run_on_over_the_end_of_an_epoch(library: Library) -> None:
    keys = [key for batch in itertools.islice(loader_of(library, batch=5).stream(0), 12) for key in batch.keys]
    epochs = [tuple(keys[start : start + 12]) for start in range(0, 60, 12)]
    assert [len(set(epoch)) for epoch in epochs] == [12] * 5
    assert len(set(epochs)) == 5, "every epoch has an order of its own"


def test_the_stream_does_not_depend_on_how_images_are_spread_over_shards(make_shelf: MakeShelf, noise: Noise) -> None:
    def spread(*counts: int) -> list[Batch]:
        """Twelve images with their labels, so many in each shard, the last first."""
        numbers = iter(range(12))
        shards = [list(itertools.islice(numbers, count)) for count in counts]
        shelves = [
            make_shelf(f"{counts}-{place}", [noise(n) for n in shard], {"kind": (KINDS, [kind(n) for n in shard])})
            for place, shard in enumerate(shards)
        ]
        return batches(loader_of(Library(shelves[::-1]), batch=5), 5)

    one, other, third = spread(12), spread(5, 3, 4), spread(1, 10, 1)
    assert all(same(a, b) for a, b in zip(one, other, strict=True))
    assert all(same(a, b) for a, b in zip(one, third, strict=True))


def test_many_shards_are_shuffled_by_windows(
    make_images: Callable[..., ImageShard], noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "WINDOW", 2)
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


def test_the_same_seed_gives_the_same_batches(library: Library) -> None:
    one, again, other = (batches(loader_of(library, seed), 4) for seed in (1, 1, 2))
    assert all(same(a, b) for a, b in zip(one, again, strict=True))
    assert not any(same(a, b) for a, b in zip(one, other, strict=True))


def test_a_batch_made_alone_is_that_of_the_stream(library: Library) -> None:
    loader = loader_of(library)
    for number, batch in enumerate(batches(loader, 7)):
        assert same(batch, loader.batch(number))


def test_a_stream_resumed_goes_on_as_if_it_had_not_stopped(library: Library) -> None:
    whole = batches(loader_of(library), 8)
    rest = batches(loader_of(library), 5, start=3)
    assert all(same(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_an_image_is_seen_differently_in_each_epoch(library: Library) -> None:
    epochs = batches(loader_of(library, batch=12), 2)
    by_key = [dict(zip(batch.keys, batch.images, strict=True)) for batch in epochs]
    assert by_key[0].keys() == by_key[1].keys()
    assert not any(torch.equal(by_key[0][key], by_key[1][key]) for key in by_key[0])


def test_an_image_met_again_in_the_same_place_of_a_batch_is_seen_differently(library: Library) -> None:
    shelf = library.shelves[0]
    one = Library([Shelf(shelf.images, np.array([2]), shelf.layers)])
    views = [image for batch in batches(loader_of(one, batch=2), 3) for image in batch.images]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(views, 2))


def test_images_without_a_label_are_missing_from_that_heads_target(library: Library) -> None:
    batch = loader_of(library, batch=12, augment=NOTHING).batch(0)
    assert batch.images.shape == (12, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    positions = [int(index) for index in library.order(1, 0)]
    odd = [place for place, position in enumerate(positions) if position % 2]
    assert batch.targets["depth"]["rows"].tolist() == odd
    assert batch.targets["depth"]["target"][:, 0, 0].tolist() == [positions[place] + 1.0 for place in odd]
    assert batch.targets["depth"]["target"].shape == (6, 8, 8)  # a quarter of the input
    assert batch.targets["kind"]["rows"].tolist() == list(range(12))
    for place, position in enumerate(positions):
        assert batch.keys[place] == library.read(position)[0]


def test_a_head_without_any_label_in_the_batch_has_no_target(library: Library) -> None:
    even = [library.sample(index, 32, NOTHING, (0,)) for index in (0, 2)]
    collate = loader_of(library).collate
    assert set(collate_samples(even, collate).targets) == {"kind"}


def test_a_sample_is_the_image_itself_where_nothing_is_drawn(library: Library, noise: Noise) -> None:
    np.testing.assert_array_equal(library.sample(3, 32, NOTHING, (0,)).image, noise(3))


def test_an_image_that_cannot_be_read_stops_the_stream(library: Library) -> None:
    path = Path(library.shelves[0].images.tar.place)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"s0\.tar: cut short"):
        list(itertools.islice(loader_of(library).stream(0), 3))


def test_the_time_spent_waiting_is_counted(library: Library) -> None:
    loader = loader_of(library)
    assert loader.waited == 0
    next(loader.stream(0))
    assert loader.waited > 0


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
