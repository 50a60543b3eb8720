"""The student's training data: label sources of each head, and errors for labels that are missing or don't fit."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest

from ingest.dataset import IngestedSet
from ingest.label_precedence import TrueLabelIndex
from ingest.rejections import REJECTED_LABELS, rejections_config
from pipeline.data.dataset import DatasetShard, ImageDataset
from pipeline.errors import DataError
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import Inputs, read_json, write_json
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from pipeline.stores.images import ImageShard
from pipeline.stores.naming import store_name
from pipeline.stores.rejections import read_rejections, reject, rejected_labels
from student.dataset import count_rejected, heads_of, student_dataset
from student.threshold_report import count_kept
from tests.disk import folder_of, resealed
from tests.steps import make_step

if TYPE_CHECKING:
    from tests.conftest import World

CONFIG = StudentConfig(loss_weights={"gabor": 1})


def test_heads_of_teachers_with_a_weight(world: World) -> None:
    inputs = world.inputs("student")
    assert set(heads_of(CONFIG, inputs)) == {"kinds", "masks", "boxes", "depth", "gabor"}
    assert set(heads_of(StudentConfig(loss_weights={"gabor": 0, "boxes": 0}), inputs)) == {"kinds", "masks", "depth"}
    heads = heads_of(CONFIG, inputs)
    assert (heads["masks"].data, heads["gabor"].data) == ("truth", None)
    assert (heads["masks"].threshold, heads["kinds"].threshold) == (0.5, 0.0)


def test_student_dataset_puts_true_labels_first_for_their_own_set(world: World) -> None:
    inputs = world.inputs("student")
    dataset = student_dataset(CONFIG, heads_of(CONFIG, inputs), inputs)
    for shard in dataset.shards:
        true = "data.truth" in str(shard.images.tar)
        assert {name: len(label_sources) for name, label_sources in shard.label_sources.items()} == {
            **dict.fromkeys(("kinds", "masks", "boxes", "depth"), 2 if true else 1),
            "gabor": 1,
        }
        for name, label_sources in shard.label_sources.items():
            assert label_sources[-1].threshold == (0.5 if name in ("masks", "boxes") else 0.0)
            if true and name != "gabor":
                assert label_sources[0].threshold == 0, "a true label is never thresholded"


def test_true_labels_sources_for_shards_of_other_sets(world: World) -> None:
    """An image can be in a labelled and in an unlabelled set: the pool has it once, from the set that comes first."""
    inputs = world.inputs("student")
    head = heads_of(CONFIG, inputs)["masks"]
    found = IngestedSet(inputs["data.truth"])
    truth = TrueLabelIndex("truth", found)
    own = found.images("train").shards
    assert len(own) > 1
    assert [
        truth.sources(head.space, "pool", shard) for shard in IngestedSet(inputs["data.pool"]).images("train").shards
    ] == [
        [],
        [],
    ]
    both = merged(own)
    label_sources = truth.sources(head.space, "pool", both)
    assert [source.file.path.name for source in label_sources] == [f"{shard.name}.parquet" for shard in own]
    assert all(source.has_label(both).sum() == len(shard) for source, shard in zip(label_sources, own, strict=True))
    dataset = ImageDataset([DatasetShard(both, np.arange(len(both)), {"masks": tuple(label_sources)})])
    expected = [
        ImageDataset(
            [DatasetShard(shard, np.arange(len(shard)), {"masks": tuple(truth.sources(head.space, "truth", shard))})]
        )
        for shard in own
    ]
    wanted = [one.values(index)["masks"]["classes"] for one in expected for index in range(len(one))]
    for index, classes in enumerate(reversed(wanted)):
        np.testing.assert_array_equal(dataset.values(index)["masks"]["classes"], classes)
    swapped = dataclasses.replace(label_sources[0], label_rows=label_sources[1].label_rows)
    with pytest.raises(DataError, match="holds key"):
        swapped.has_label(both)


def merged(shards: Sequence[ImageShard]) -> ImageShard:
    """Return one shard with the keys of several, in reverse."""
    keys = [key for shard in shards for key in shard.keys][::-1]
    return cast(ImageShard, SameKeys("shard-000000", keys))


@dataclasses.dataclass
class SameKeys:
    name: str
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)


@pytest.fixture
def elsewhere(world: World, tmp_path: Path) -> Inputs:
    """The student's inputs with a copy of the labels, which tests can damage."""
    inputs = world.inputs("student")
    shutil.copytree(world.runtime.root / "labels", tmp_path / "labels")
    shutil.copytree(folder_of(inputs["label"]), tmp_path / "label")
    moved = dataclasses.replace(inputs["label"], root=Root.of(tmp_path), path="label")
    return Inputs({**inputs.artifacts, "label": moved}, world.runtime)


def test_student_dataset_names_shard_without_labels(elsewhere: Inputs) -> None:
    index = folder_of(elsewhere["label"]) / "labels.json"
    entries = read_json(index)
    gone = next(entry for entry in entries if entry["teacher"] == "depth")
    write_json(index, [entry for entry in entries if entry is not gone])
    inputs = dataclasses.replace(elsewhere, artifacts={**elsewhere.artifacts, "label": resealed(elsewhere["label"])})
    with pytest.raises(DataError, match=rf"No labels by teacher 'depth' for {gone['set']}/{gone['shard']}"):
        student_dataset(CONFIG, heads_of(CONFIG, inputs), inputs)


def test_student_dataset_refuses_labels_of_other_images(elsewhere: Inputs) -> None:
    entries = elsewhere["label"].load("labels.json", read_json)
    entry = next(entry for entry in entries if entry["teacher"] == "depth")
    path = Path(elsewhere["label"].external_file(entry["path"]).path)
    table = pq.read_table(path)
    keys = table.column("key").to_pylist()
    pq.write_table(table.take([1, 0, *range(2, len(table))]), path)
    with pytest.raises(DataError, match=rf"row 0 holds key '{keys[1]}' where shard {entry['shard']} has '{keys[0]}'"):
        student_dataset(CONFIG, heads_of(CONFIG, elsewhere), elsewhere)


def rejecting(world: World, folder: Path, store: str, keys: Sequence[str]) -> Inputs:
    """Return the student's inputs with these labels rejected."""
    runtime = dataclasses.replace(world.runtime, root=Root.of(folder))
    reject(runtime.root, keys, store, "wrong")
    teacher = store.rpartition("-")[0]
    config = {
        "rejected": rejections_config(rejected_labels(read_rejections(runtime.root), [teacher])),
        "teachers": [teacher],
    }
    made = Workspace(runtime.root).make(
        make_step(REJECTED_LABELS, "ingest.rejections:copy_labels", config), Inputs({}, runtime)
    )
    inputs = world.inputs("student")
    return Inputs({**inputs.artifacts, REJECTED_LABELS: made}, inputs.runtime)


def learned(inputs: Inputs, config: StudentConfig = CONFIG) -> dict[str, dict[str, Any]]:
    """Return the labels that the student learns, by key and head."""
    dataset = student_dataset(config, heads_of(config, inputs), inputs)
    return {dataset.read(index)[0]: dataset.values(index) for index in range(len(dataset))}


def keys_in(inputs: Inputs, name: str) -> list[str]:
    return [key for shard in IngestedSet(inputs[f"data.{name}"]).images("train").shards for key in shard.keys]


def test_student_dataset_drops_rejected_labels_but_not_true_ones(world: World, tmp_path: Path) -> None:
    inputs = world.inputs("student")
    pool, truth = keys_in(inputs, "pool"), keys_in(inputs, "truth")
    store = store_name("masks", inputs["teacher.masks"].digest)
    rejected = rejecting(world, tmp_path, store, [pool[1], pool[5], truth[0], "0" * 16])
    before, after = learned(inputs), learned(rejected)
    assert before.keys() == after.keys()
    lost = {(key, head) for key in before for head in before[key].keys() - after[key].keys()}
    assert lost == {(pool[1], "masks"), (pool[5], "masks")}
    for key, values in after.items():
        for head, value in values.items():
            assert all(np.array_equal(value[name], before[key][head][name]) for name in value)
    assert count_rejected(rejected) == {"rejected": {"masks": 3}, "unmatched_rejections": 1}
    pseudo = StudentConfig(loss_weights={"gabor": 1}, labels="pseudo_only")
    assert "masks" in learned(inputs, pseudo)[truth[0]]
    assert "masks" not in learned(rejected, pseudo)[truth[0]]
    shares, fewer = (count_kept(heads_of(CONFIG, each), each) for each in (inputs, rejected))
    assert (shares["masks"]["images"], fewer["masks"]["images"]) == (16, 13)
    assert sum(shares["masks"]["held"]) - sum(fewer["masks"]["held"]) == 3 * 8 * 8
    assert {**shares, "masks": None} == {**fewer, "masks": None}


def test_count_rejected_ignores_other_versions_of_a_teacher(world: World, tmp_path: Path) -> None:
    inputs = world.inputs("student")
    rejected = rejecting(world, tmp_path, "masks-0123456789ab", keys_in(inputs, "pool"))
    assert {key: set(values) for key, values in learned(rejected).items()} == {
        key: set(values) for key, values in learned(inputs).items()
    }
    assert count_kept(heads_of(CONFIG, rejected), rejected) == count_kept(heads_of(CONFIG, inputs), inputs)
    counts = {"rejected": {}, "unmatched_rejections": 7, "lapsed_rejections": {"masks": 7}}
    assert count_rejected(rejected) == counts
    assert count_rejected(inputs) == {}


def test_student_dataset_leaves_out_images_without_labels(world: World, tmp_path: Path) -> None:
    only = StudentConfig(loss_weights=dict.fromkeys(("kinds", "boxes", "depth", "gabor"), 0))
    key = keys_in(world.inputs("student"), "pool")[0]
    store = store_name("masks", world.artifacts["teacher.masks"].digest)
    rejected = rejecting(world, tmp_path, store, [key])
    assert learned(world.inputs("student"), only).keys() - learned(rejected, only).keys() == {key}
