"""Test subsets of labels: which images are for training, validation and testing."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from evaluation.label_subsets import Splits, find_splits, label_count, nested_order, split_train_val, val_count
from ingest.dataset import IngestedSet
from ingest.true_labels import class_ids, true_label_dataset
from pipeline.data.dataset import ImageDataset
from pipeline.errors import ConfigError
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.runtime import Runtime
from teachers._label_checks import check_labels
from tests.evaluation.measuring import MakeKinds, keys_of

KINDS = "classification"


def train_of(made: Artifact, task: str = KINDS) -> ImageDataset:
    return true_label_dataset(IngestedSet(made), "train", {task: task})


def splits_in(made: Artifact, preferred: str = "test") -> Splits:
    splits = find_splits(IngestedSet(made), KINDS, preferred)
    assert splits
    return splits


@pytest.fixture
def uneven(make_kinds: MakeKinds) -> ImageDataset:
    """Return a dataset of three classes with six, three and one image."""
    return train_of(make_kinds({"train/a": range(6), "train/b": range(6, 9), "train/c": [9]}))


def test_nested_order_balances_classes_in_every_beginning(uneven: ImageDataset) -> None:
    there, classes = Counter({0: 6, 1: 3, 2: 1}), class_ids(uneven, KINDS)
    for seed in range(5):
        order = nested_order(uneven.keys(), classes, seed)
        assert sorted(order) == list(range(10)), "each image once"
        for count in range(1, 11):
            drawn = Counter(classes[order[:count]].tolist())
            most = max(drawn.values())
            assert all(drawn[kind] >= min(there[kind], most - 1) for kind in there), (count, drawn)


def test_nested_order_depends_on_the_seed_alone(uneven: ImageDataset) -> None:
    keys, classes = uneven.keys(), class_ids(uneven, KINDS)
    orders = [tuple(nested_order(keys, classes, seed)) for seed in range(6)]
    assert tuple(nested_order(keys, classes, 0)) == orders[0]
    assert len(set(orders)) > 3
    assert len({frozenset(order[:4]) for order in orders}) > 1, "other images, not the same ones in another order"


def test_splits_order_without_classes_depends_on_the_seed(scenes: Artifact) -> None:
    splits = find_splits(IngestedSet(scenes), "depth", "test")
    assert splits
    assert not splits.classes
    assert sorted(splits.order(1)) == list(range(12))
    assert tuple(splits.order(1)) != tuple(splits.order(2))


def test_split_train_val_subsets_are_nested() -> None:
    order = np.random.default_rng(0).permutation(30)
    drawn = [set(np.concatenate(split_train_val(order[:count], None)).tolist()) for count in (5, 10, 23, 30)]
    assert [len(each) for each in drawn] == [5, 10, 23, 30]
    assert all(few < more for few, more in itertools.pairwise(drawn))


def test_split_train_val_takes_a_fifth_for_validation() -> None:
    order = np.random.default_rng(0).permutation(20)
    learned, aside = split_train_val(order, None)
    assert (len(learned), len(aside)) == (16, 4)
    assert not set(learned) & set(aside)
    assert [len(part) for part in split_train_val(order[:3], None)] == [2, 1], "at least one decides"


def test_splits_split_takes_no_label_for_validation_if_there_are_validation_images(colours: Artifact) -> None:
    splits = splits_in(colours)
    assert [len(part) for part in splits.split(splits.order(0), 12)] == [12, 0]
    splits = splits_in(colours, "val")
    learned, aside = splits.split(splits.order(0), 12)
    assert (len(learned), len(aside)) == (10, 2)
    assert set(learned) | set(aside) == set(splits.order(0)[:12])


@pytest.mark.parametrize(
    ("counts", "aside"),
    [
        ([1000, 10], [200, 2]),
        ([500, 200, 100, 50, 20], [100, 40, 20, 10, 4]),
        ([4] * 10, [1] * 8 + [0] * 2),
        ([100, 1, 1, 1], [20, 0, 0, 0]),
        ([5, 1, 1, 1, 1, 1], [2, 0, 0, 0, 0, 0]),
        ([2, 1, 1, 1, 1, 1, 1, 1, 1, 1], [1, *[0] * 9]),
        ([1, 1], [1, 0]),
    ],
)
def test_split_train_val_takes_a_fifth_of_each_class(counts: list[int], aside: list[int]) -> None:
    """A rare class keeps images to train on: it has them all among the first of an order that takes classes in turn."""
    classes = np.repeat(np.arange(len(counts)), counts)
    order = nested_order([str(number) for number in range(len(classes))], classes, seed=1)
    learned, val = split_train_val(order, classes[order])
    assert sorted([*learned, *val]) == list(range(len(classes)))
    found = np.bincount(classes[val], minlength=len(counts)).tolist()
    assert sorted(found, reverse=True) == aside if len(set(counts)) == 1 else found == aside


def test_split_train_val_of_classes_takes_as_many_as_without() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        counts = rng.integers(2, 30, rng.integers(2, 12))
        classes = np.repeat(np.arange(len(counts)), counts)
        order = nested_order([str(number) for number in range(len(classes))], classes, seed=3)
        chosen = order[: int(rng.integers(2 * len(counts), len(order) + 1))]
        learned, val = split_train_val(chosen, classes[chosen])
        assert len(val) == val_count(len(chosen))
        assert set(classes[learned]) == set(classes[chosen]), "each class is learned"


def test_label_count_of_all_numbers_and_shares() -> None:
    assert label_count("all", 50, 10, "pets") == 50
    assert label_count(20, 50, 10, "pets") == 20
    assert label_count(0.3, 50, 10, "pets") == 15
    assert label_count(50, 50, 10, "pets") == 50
    assert label_count(10, 50, 10, "pets") == 10, "one of each class"
    assert label_count("all", 1, 1, "pets") == 1
    assert label_count("all", 3, 2, "pets", val_from_train=True) == 3
    assert label_count("all", 300, 1000, "pets", val_from_train=True) == 300, "not every class occurs"


@pytest.mark.parametrize(
    ("amount", "classes", "says"),
    [
        (51, 10, r"labels: 51 labelled images asked for; pets has 50 to learn from"),
        (9, 10, r"labels: 9 of 50 labelled images are 9; pets has 10 classes, and at least 10 images are needed"),
        (0.1, 10, r"labels: 0\.1 of 50 labelled images are 5; pets has 10 classes, and at least 10"),
        (0.02, 0, r"labels: 0\.02 of 50 labelled images are 1; pets has 0 classes, and at least 2"),
    ],
)
def test_label_count_refuses_too_many_and_too_few(amount: float, classes: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        label_count(amount, 50, classes, "pets")


@pytest.mark.parametrize("total", [1, 2])
def test_label_count_refuses_too_few_images_to_train_and_validate(total: int) -> None:
    says = rf"labels: all of {total} labelled images are {total}; pets has 2 classes, and at least 3 images are needed"
    with pytest.raises(ConfigError, match=says):
        label_count("all", total, 2, "pets", val_from_train=True)


def test_find_splits_has_validation_images_if_there_are_some(colours: Artifact) -> None:
    splits = splits_in(colours)
    assert splits.val
    assert (len(splits.train), len(splits.val), len(splits.test), splits.name) == (18, 6, 9, "test")


@pytest.mark.parametrize(
    ("held_out", "preferred", "name"), [("val", "test", "val"), ("test", "val", "test"), ("test", "test", "test")]
)
def test_find_splits_tests_on_the_one_held_out_split(
    held_out: str, preferred: str, name: str, make_kinds: MakeKinds
) -> None:
    made = make_kinds({"train/a": [1], "train/b": [2], f"{held_out}/a": [3], f"{held_out}/b": [4]})
    splits = splits_in(made, preferred)
    assert (splits.name, len(splits.test), splits.val) == (name, 2, None)


def test_find_splits_does_not_validate_on_the_tested_val_split(colours: Artifact) -> None:
    splits = splits_in(colours, "val")
    assert (splits.name, len(splits.test), splits.val) == ("val", 6, None)


def test_find_splits_does_not_train_on_held_out_images(make_kinds: MakeKinds) -> None:
    """Image 2 is also a test image, image 3 a validation image."""
    held_out = {"val/a": [3], "val/b": [5], "test/a": [2], "test/b": [6]}
    splits = splits_in(make_kinds({"train/a": [1, 2, 3], "train/b": [4], **held_out}))
    assert splits.val
    assert len(splits.train) == 2
    assert not keys_of(splits.train) & (keys_of(splits.val) | keys_of(splits.test))


def test_find_splits_does_not_validate_on_test_images(make_kinds: MakeKinds) -> None:
    """Number 3 is in both held-out splits."""
    splits = splits_in(
        make_kinds({"train/a": [1], "train/b": [2], "val/a": [3], "val/b": [4], "test/a": [3], "test/b": [5]})
    )
    assert splits.val
    assert len(splits.test) == 2
    assert len(splits.val) == 1
    assert not keys_of(splits.val) & keys_of(splits.test)


def test_find_splits_has_no_val_if_all_its_images_are_tested(make_kinds: MakeKinds) -> None:
    held_out = {"val/a": [3], "test/a": [3], "val/b": [4], "test/b": [4]}
    splits = splits_in(make_kinds({"train/a": [1], "train/b": [2], **held_out}))
    assert splits.val is None


def test_find_splits_refuses_sets_without_held_out_labels(make_kinds: MakeKinds, scenes: Artifact) -> None:
    with pytest.raises(ConfigError, match="no held-out image has a label for 'classification'"):
        find_splits(IngestedSet(make_kinds({"train/a": [1], "train/b": [2]})), KINDS, "test")
    with pytest.raises(ConfigError, match="no held-out image has a label for 'texture'"):
        find_splits(IngestedSet(scenes), "texture", "test")


def test_find_splits_refuses_sets_whose_training_images_are_all_held_out(make_kinds: MakeKinds) -> None:
    made = make_kinds({"train/a": [1], "train/b": [2], "test/a": [1], "test/b": [2]})
    with pytest.raises(ConfigError, match="no image in its split 'train' that is not held out"):
        find_splits(IngestedSet(made), KINDS, "test")


def test_check_labels_refuses_a_teacher_whose_training_images_are_all_held_out(
    make_kinds: MakeKinds, runtime: Runtime
) -> None:
    made = make_kinds({"train/a": [1], "train/b": [2], "test/a": [1], "test/b": [2]})
    config = {"name": "t", "teacher": {"data": "kinds", "task": KINDS, "validate": None}}
    with pytest.raises(ConfigError, match=r"the set 'kinds' has no image with a label for 'classification' to"):
        check_labels(config, Inputs({"data.kinds": made}, runtime))
