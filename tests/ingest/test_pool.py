"""Pools, rejections and datasets of true labels: every image once, none held out anywhere, labels of their images."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

import tasks
from ingest.dataset import IngestedSet
from ingest.pool import pool_shards, read_pool
from ingest.rejections import REJECTED_IMAGES, rejections_config
from ingest.true_labels import drop_unlabelled, held_out_keys, train_classes, true_label_dataset
from pipeline.data.dataset import DatasetShard
from pipeline.errors import ConfigError, DataError
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelSpace
from pipeline.stores.rejections import read_rejections, reject, rejected_images, rejected_labels, undo_reject
from tests.augment import NO_AUGMENTATION
from tests.disk import folder_of
from tests.steps import make_step

Noise = Callable[..., NDArray[np.uint8]]
MakeSet = Callable[..., Artifact]


@pytest.fixture
def make_set(tmp_path: Path, noise: Noise, runtime: Runtime) -> MakeSet:
    """Return a function that ingests pictures, given numbers by `<split>/<class>`; without `/`, they are unlabelled."""

    def make(name: str, pictures: dict[str, Sequence[int]], shard_images: int = 3) -> Artifact:
        for folder, numbers in pictures.items():
            (tmp_path / name / folder).mkdir(parents=True)
            for number in numbers:
                Image.fromarray(noise(number)).save(tmp_path / name / folder / f"{number}.png")
        kind = "imagefolder" if any("/" in folder for folder in pictures) else "folder"
        source = {"kind": kind, "path": str(tmp_path / name)}
        config = {"name": name, "source": source, "shard_images": shard_images}
        step = make_step(f"data.{name}", "ingest.ingest:ingest", config)
        return Workspace(runtime.root).make(step, Inputs({}, runtime))

    return make


def make_pool(
    sets: dict[str, Artifact],
    names: list[str],
    runtime: Runtime,
    gather: str = "gather_pool",
    name: str = "pool",
    **more: object,
) -> Artifact:
    """Make the pool of these sets, without rejected images."""
    images = rejected_images(read_rejections(runtime.root))
    inputs = {f"data.{name}": made for name, made in sets.items()}
    if len(images):
        step = make_step(REJECTED_IMAGES, "ingest.rejections:copy_images", {"rejected": rejections_config(images)})
        inputs[REJECTED_IMAGES] = Workspace(runtime.root).make(step, Inputs({}, runtime))
    step = make_step(name, f"ingest.pool:{gather}", {"pool": names, **more}, tuple(inputs))
    return Workspace(runtime.root).make(step, Inputs(inputs, runtime))


def keys_of(made: Artifact, split: str = "train") -> list[str]:
    return [key for shard in IngestedSet(made).images(split).shards for key in shard.keys]


def test_pool_leaves_out_images_held_out_in_any_set(make_set: MakeSet, runtime: Runtime) -> None:
    """Images are compared by their bytes, also with sets that are not pooled themselves."""
    sets = {
        "wild": make_set("wild", {"all": [1, 2, 3, 4, 5]}),
        "kinds": make_set("kinds", {"train/a": [10, 11], "test/a": [2], "val/b": [4], "train/b": [12]}),
    }
    pool = make_pool(sets, ["wild"], runtime)
    table = pool.load("pool.parquet", pq.read_table).to_pylist()
    kept = {row["key"] for row in table if row["used"]}
    assert len(kept) == 3
    assert not kept & held_out_keys(IngestedSet(sets["kinds"]))
    assert [row["reason"] for row in table if not row["used"]] == ["held out in kinds"] * 2
    assert pool.counts == {"images": 3, "left_out": {"held out in kinds": 2}}


def test_pool_uses_image_of_two_sets_once(make_set: MakeSet, runtime: Runtime) -> None:
    sets = {"one": make_set("one", {"all": [1, 2, 3]}), "two": make_set("two", {"all": [3, 4]})}
    pool = make_pool(sets, ["one", "two"], runtime)
    assert pool.counts == {"images": 4, "left_out": {"already in the pool from one": 1}}


def test_pool_reasons_put_held_out_before_duplicate(make_set: MakeSet, runtime: Runtime) -> None:
    sets = {
        "one": make_set("one", {"train/a": [1, 2], "test/a": [3]}),
        "two": make_set("two", {"train/a": [1, 3, 4], "val/a": [2]}),
        "three": make_set("three", {"train/a": [2, 4], "test/a": [3]}),
    }
    pool = make_pool(sets, ["two", "one", "three"], runtime)
    rows = [(row["set"], row["reason"]) for row in pq.read_table(folder_of(pool) / "pool.parquet").to_pylist()]
    assert rows == [
        *(("two", reason) for reason in (None, "held out in three", None)),
        *(("one", reason) for reason in ("already in the pool from two", "held out in two")),
        *(("three", reason) for reason in ("held out in two", "already in the pool from two")),
    ]
    met = "already in the pool from two"
    assert pool.counts == {"images": 2, "left_out": {"held out in three": 1, met: 2, "held out in two": 2}}


def test_pool_leaves_out_rejected_images_with_reason(make_set: MakeSet, runtime: Runtime) -> None:
    """Held out comes first among the reasons; a rejected image is not taken from another set either."""
    sets = {
        "one": make_set("one", {"train/a": [1, 2], "test/a": [3]}),
        "two": make_set("two", {"train/a": [1, 3, 4], "train/b": [5]}),
    }
    before = make_pool(sets, ["one", "two"], runtime)
    first, second = keys_of(sets["one"])
    fourth = next(key for key in keys_of(sets["two"]) if key not in {first, *keys_of(sets["one"], "test")})
    reject(runtime.root, [first, *keys_of(sets["one"], "test"), "0" * 16], None, "blurred")
    reject(runtime.root, [fourth], None, "too dark")
    reject(runtime.root, [second], "masks-0123456789ab", "wrong")
    pool = make_pool(sets, ["one", "two"], runtime)
    reasons = {(row["set"], row["key"]): row["reason"] for row in pool.load("pool.parquet", pq.read_table).to_pylist()}
    assert reasons["one", first] == reasons["two", first] == "rejected: blurred"
    assert reasons["two", fourth] == "rejected: too dark"
    assert reasons["one", second] is None
    left_out = {"rejected": 3, "held out in one": 1}
    assert pool.counts == {"images": 2, "left_out": left_out, "unmatched_rejections": 1}
    undo_reject(runtime.root, [first, fourth, "0" * 16, *keys_of(sets["one"], "test")], None)
    assert make_pool(sets, ["one", "two"], runtime).digest == before.digest


def test_pool_counts_rejections_of_unknown_images(make_set: MakeSet, runtime: Runtime) -> None:
    sets = {"wild": make_set("wild", {"all": [1, 2]})}
    before = make_pool(sets, ["wild"], runtime)
    reject(runtime.root, ["0" * 16], None, "blurred")
    after = make_pool(sets, ["wild"], runtime)
    assert after.digest == before.digest
    assert after.counts == {"images": 2, "left_out": {}, "unmatched_rejections": 1}


def test_pool_refuses_to_be_all_rejected(make_set: MakeSet, runtime: Runtime) -> None:
    sets = {"wild": make_set("wild", {"all": [1, 2]})}
    reject(runtime.root, keys_of(sets["wild"]), None, "blurred")
    with pytest.raises(DataError, match=r"The pool \(wild\) has no image to use: 2 rejected: blurred\. Add images"):
        make_pool(sets, ["wild"], runtime)


def test_copy_images_refuses_rejections_that_changed_since_the_plan(runtime: Runtime) -> None:
    reject(runtime.root, ["0" * 16], None, "blurred")
    planned = rejections_config(rejected_images(read_rejections(runtime.root)))
    reject(runtime.root, ["0" * 15 + "1"], None, "blurred")
    step = make_step(REJECTED_IMAGES, "ingest.rejections:copy_images", {"rejected": planned})
    with pytest.raises(ConfigError, match=r"changed since the run was planned: 1 rejections .* 2 with .* Run again"):
        Workspace(runtime.root).make(step, Inputs({}, runtime))


def test_copy_images_and_copy_labels_depend_on_what_is_rejected_alone(runtime: Runtime, tmp_path: Path) -> None:
    """Time and order of rejections must not force later steps to run again."""
    digests = set()
    for name, keys in (("one", ["0" * 16, "1" * 16]), ("two", ["1" * 16, "0" * 16])):
        other = dataclasses.replace(runtime, root=Root.of(tmp_path / name))
        for key in keys:
            for store in (None, "masks-0123456789ab", "boxes-0123456789ab"):
                reject(other.root, [key], store, "wrong")
        table = read_rejections(other.root)
        for what, rows in (("images", rejected_images(table)), ("labels", rejected_labels(table, ["boxes"]))):
            config = {"rejected": rejections_config(rows), "teachers": ["boxes"]}
            step = make_step(f"rejected.{what}", f"ingest.rejections:copy_{what}", config)
            made = Workspace(other.root).make(step, Inputs({}, other))
            assert made.counts == {"rejections": 2}
            digests.add((what, made.digest))
    assert len(digests) == 2


def test_gather_for_stage_depends_on_used_images_alone(make_set: MakeSet, runtime: Runtime) -> None:
    """It does not change with other images that are read, held out or rejected."""
    own = {"wild": make_set("wild", {"all": [1, 2, 3, 4, 5, 6]}), "more": make_set("more", {"all": [6, 7]})}

    def images(**others: Artifact) -> Artifact:
        return make_pool({**own, **others}, ["wild", "more"], runtime, "gather_for_stage", "pool.mine")

    kinds = make_set("kinds", {"train/a": [10], "test/a": [2]})
    first = images(kinds=kinds)
    rows = first.load("pool.parquet", pq.read_table).to_pylist()
    whole = make_pool({**own, "kinds": kinds}, ["wild", "more"], runtime)
    used = [row for row in whole.load("pool.parquet", pq.read_table).to_pylist() if row["used"]]
    assert rows == used
    assert first.counts == whole.counts == {"images": 6, "left_out": {"held out in kinds": 1, ALSO: 1}}
    grown = make_set("grown", {"train/a": [10, 11], "test/a": [2, 12], "train/b": [3]})
    reject(runtime.root, keys_of(kinds), None, "blurred")
    other = images(kinds=kinds, grown=grown)
    assert other.digest == first.digest
    assert other.fingerprint != first.fingerprint
    reject(runtime.root, keys_of(kinds, "test"), None, "of an image that is held out")
    assert images(kinds=kinds, grown=grown).digest == first.digest
    reject(runtime.root, [rows[0]["key"]], None, "blurred")
    assert images(kinds=kinds, grown=grown).digest != first.digest


ALSO = "already in the pool from wild"


def test_gather_for_stage_draws_long_tail(make_set: MakeSet, runtime: Runtime) -> None:
    """Shares of 100, 20 and 4 % of the images with a class that are not held out."""
    kinds = {"train/a": range(20), "train/b": range(20, 40), "train/c": range(40, 60), "test/a": [0, 1]}
    sets = {"kinds": make_set("kinds", kinds, 8), "wild": make_set("wild", {"all": [70, 71]})}

    def images(seed: int) -> Artifact:
        return make_pool(sets, ["kinds", "wild"], runtime, "gather_for_stage", "pool.mine", long_tail=0.04, seed=seed)

    made = images(0)
    _, classes = train_classes({"kinds": IngestedSet(sets["kinds"])})
    drawn = read_pool(made, ["key"]).column("key").to_pylist()
    assert Counter(classes[key] for key in drawn) == {0: 18, 1: 4, 2: 1}, "n r^(c / (C - 1)) of 20 images"
    assert made.counts == {"images": 23, "left_out": {"held out in kinds": 2, "long tail": 37}}
    assert read_pool(images(1), ["key"]).column("key").to_pylist() != drawn


def test_gather_for_stage_refuses_long_tail_of_several_class_lists(make_set: MakeSet, runtime: Runtime) -> None:
    wild, kinds = make_set("wild", {"all": [1, 2]}), make_set("kinds", {"train/a": [3], "train/b": [4]})
    other, unseen = make_set("other", {"train/c": [5], "train/b": [6]}), make_set("unseen", {"test/a": [7]})
    sets = {"wild": wild, "kinds": kinds, "other": other, "unseen": unseen}
    for names, says in ((["wild"], "have 0 kinds of class labels"), (["kinds", "other"], "have 2 kinds")):
        with pytest.raises(ConfigError, match=says):
            make_pool(sets, names, runtime, "gather_for_stage", "pool.mine", long_tail=0.1, seed=0)
    with pytest.raises(DataError, match="long_tail: no image of wild, unseen has a class"):
        make_pool(sets, ["wild", "unseen"], runtime, "gather_for_stage", "pool.mine", long_tail=0.1, seed=0)


def test_pool_shards_come_with_rows_to_use(make_set: MakeSet, runtime: Runtime) -> None:
    sets = {
        "wild": make_set("wild", {"all": [1, 2, 3, 4, 5]}, shard_images=2),
        "kinds": make_set("kinds", {"train/a": [10], "test/a": [1, 2], "train/b": [11], "val/b": [3]}),
    }
    pool = make_pool(sets, ["wild", "kinds"], runtime)
    found = list(pool_shards(pool, sets))
    usable = {key for name, shard, rows in found for key in np.array(shard.keys)[rows]}
    assert len(usable) == 4
    assert sum(len(rows) for _, _, rows in found) == 4
    wild = [(shard.name, rows.tolist()) for name, shard, rows in found if name == "wild"]
    assert wild == [("shard-000001", [1]), ("shard-000002", [0])], "a shard with no image to use is not opened"


def test_pool_refuses_to_be_all_held_out(make_set: MakeSet, runtime: Runtime) -> None:
    sets = {"wild": make_set("wild", {"all": [1]}), "kinds": make_set("kinds", {"train/a": [2], "test/a": [1]})}
    with pytest.raises(DataError, match=r"The pool \(wild\) has no image to use: 1 held out in kinds"):
        make_pool(sets, ["wild"], runtime)


def test_true_label_dataset_pairs_labels_with_images(make_set: MakeSet, noise: Noise) -> None:
    found = IngestedSet(make_set("kinds", {"train/a": [1, 2, 3, 4], "train/b": [5, 6], "test/a": [7]}))
    dataset = true_label_dataset(found, "train", {"kind": "classification"})
    assert len(dataset) == 6
    for index in range(6):
        image = dataset.sample(index, 32, "stretch", NO_AUGMENTATION, (0,)).image
        number = [n for n in range(1, 7) if np.array_equal(image, noise(n))]
        assert dataset.values(index)["kind"]["probs"].tolist() == ([1, 0] if number[0] <= 4 else [0, 1])
    assert found.held_out_split("val") == "test"
    assert found.held_out_split("test") == "test"
    assert len(true_label_dataset(found, "test", {"kind": "classification"})) == 1
    assert len(true_label_dataset(found, "val", {"kind": "classification"})) == 0


def test_true_label_dataset_leaves_out_keys(make_set: MakeSet) -> None:
    found = IngestedSet(make_set("kinds", {"train/a": [1, 2, 3, 4], "train/b": [5]}))
    keys = [key for shard in found.images("train").shards for key in shard.keys]
    dataset = true_label_dataset(found, "train", {"kind": "classification"}, {keys[0], keys[4]})
    assert [dataset.read(index)[0] for index in range(len(dataset))] == keys[1:4]


def test_drop_unlabelled_keeps_images_with_any_label(
    make_dataset_shard: Callable[..., DatasetShard], noise: Noise
) -> None:
    kinds, depth = tasks.label(LabelSpace("classification", ("a",))), tasks.label(LabelSpace("depth"))
    one, flat = {"probs": np.ones(1, np.float32)}, {"depth": np.ones((2, 2), np.float32)}
    labels = {"kind": (kinds, [one, None, None, one]), "depth": (depth, [None, None, flat, flat])}
    shard = drop_unlabelled(make_dataset_shard("s0", [noise(n) for n in range(4)], labels))
    assert shard.rows.tolist() == [0, 2, 3]
