"""Small subsets of a set's labels: which images are for training, validation and testing. No torch."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import tasks
from ingest.dataset import IngestedSet
from ingest.true_labels import CLASSIFICATION, class_ids, held_out_keys, true_label_dataset
from ingest.validation import check_measurable
from pipeline.data.dataset import ImageDataset
from pipeline.data.sampling import random_order
from pipeline.data.statistics import Statistics, own_statistics
from pipeline.errors import ConfigError
from pipeline.recipe.evaluation import Amount
from pipeline.steps.artifact import Inputs
from pipeline.stores.labels import LabelSpace

PROBES = "evaluation.probes"
"""The package with a file for each probe."""
VAL_DIVISOR = 5
"""A set with only one held-out split gives up one training label in so many for validation."""


@dataclasses.dataclass(frozen=True)
class Splits:
    """Images with labels of one task, by what they are used for."""

    train: ImageDataset
    val: ImageDataset | None
    """None if validation images are taken from `train`."""
    test: ImageDataset
    name: str
    """Name of the split that `test` is."""
    space: LabelSpace

    @property
    def classes(self) -> int:
        """Number of classes; 0 for tasks other than classification."""
        return len(self.space.classes) if self.space.task == CLASSIFICATION else 0

    @functools.cached_property
    def train_classes(self) -> NDArray[np.int64]:
        """Class ids of the training images (N,); classification only."""
        return class_ids(self.train, CLASSIFICATION)

    @functools.cached_property
    def own_statistics(self) -> Statistics | None:
        """Statistics of the training images, if they are no pictures."""
        return own_statistics(self.train)

    def order(self, seed: int) -> NDArray[np.int64]:
        """Return all positions in `train` in an order whose beginnings are the subsets of labels."""
        return nested_order(self.train.keys(), self.train_classes if self.classes else None, seed)

    def split(self, order: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the positions in `train` to train on and to validate on, among the first `count` of an order.

        The latter are none if there are validation images.
        """
        if self.val:
            return order[:count], order[:0]
        return split_train_val(order[:count], self.train_classes[order[:count]] if self.classes else None)


class LabelRequest(NamedTuple):
    """The splits of a task that a step measures on, and the number of training labels that each amount means."""

    splits: Splits
    counts: dict[Amount, int]


def label_requests(config: Mapping[str, Any], inputs: Inputs) -> dict[str, LabelRequest]:
    """Return what a step that probes or fine-tunes has to measure, by task, on a set that the recipe names.

    Tasks without labels to train on or without held-out labels that tell anything are left out. Raises ConfigError if
    none is left, or if the set has fewer labels than asked for.
    """
    found, reasons = possible_requests(config, inputs)
    if not found:
        raise ConfigError(
            f"the set {config['set']!r} can't be measured on: {reasons or 'it has no labels to learn from'}. Give it "
            "splits train and test, or val, with such labels, or leave the set out."
        )
    return found


def possible_requests(config: Mapping[str, Any], inputs: Inputs) -> tuple[dict[str, LabelRequest], str]:
    """Return the same, none if nothing can be measured, and why tasks are left out, "" if none is.

    Raises ConfigError if the set has fewer labels than asked for.
    """
    name = config["set"]
    ingested = IngestedSet(inputs[f"data.{name}"])
    spaces = ingested.spaces
    found, reasons = {}, []
    for task in (task for task in spaces if "probes" not in config or probes_for(config["probes"], spaces[task])):
        try:
            splits = find_splits(ingested, task, config["splits"])
        except ConfigError as error:
            reasons.append(str(error))
        else:
            found[task] = LabelRequest(splits, _counts(splits, config["labels"], name))
    return found, "; ".join(reasons)


def probes_for(probes: Sequence[str], space: LabelSpace) -> list[str]:
    """Return those of the probes that can learn labels of this space: of maps only what lies over the image."""
    label, found = tasks.label(space), []
    for name in probes:
        probe = probe_module(name)
        if isinstance(label, probe.LABEL) and (space.aligned or probe.READS != "maps"):
            found.append(name)
    return found


def probe_module(name: str) -> ModuleType:
    """Load a probe: the module in `evaluation/probes/` of this name."""
    return importlib.import_module(f"{PROBES}.{name}")


def _counts(splits: Splits, amounts: Sequence[Amount], name: str) -> dict[Amount, int]:
    total, val_from_train = len(splits.train), splits.val is None
    return {amount: label_count(amount, total, splits.classes, name, val_from_train) for amount in amounts}


def find_splits(ingested: IngestedSet, task: str, preferred: str) -> Splits:
    """Return the splits for a task. No test image is used for training or validation, even if another split has it too.

    Raises ConfigError if the set has no labels of the task to train on, or none held out that tell anything.
    """
    test = ingested.held_out_split(preferred, task)
    if test is None:
        raise ConfigError(f"no held-out image has a label for {task!r}")
    heads = {task: task}
    train = true_label_dataset(ingested, "train", heads, held_out_keys(ingested))
    if not len(train):
        raise ConfigError(f"no image in its split 'train' that is not held out as well has a label for {task!r}")
    val = _validation_images(ingested, task) if test == "test" else None
    tested, space = true_label_dataset(ingested, test, heads), ingested.spaces[task]
    check_measurable(tested, space, f"its split {test!r}", task)
    return Splits(train, val, tested, test, space)


def _validation_images(ingested: IngestedSet, task: str) -> ImageDataset | None:
    """Return the validation images that are not test images, None if there are none."""
    if not ingested.counts.get(f"labels.{task}.val"):
        return None
    test_keys = {key for shard in ingested.images("test").shards for key in shard.keys}
    val = true_label_dataset(ingested, "val", {task: task}, test_keys)
    return val if len(val) else None


def nested_order(keys: Sequence[str], classes: NDArray[np.int64] | None, seed: int) -> NDArray[np.int64]:
    """Return the positions of all keys in random order, the classes in turn if there are any.

    The first n positions are a subset of labels for any n: as balanced as can be, and contained in every larger one.
    """
    order = random_order(keys, seed)
    if classes is None:
        return order
    drawn = classes[order]
    rank = np.empty(len(order), np.int64)
    for number in np.unique(drawn):
        rank[drawn == number] = np.arange((drawn == number).sum())
    return order[np.argsort(rank, kind="stable")]


def label_count(amount: Amount, total: int, classes: int, name: str, val_from_train: bool = False) -> int:
    """Return how many of the `total` labelled images of the set `name` an amount means.

    Raises ConfigError if there are fewer images, or if they are too few to train on at least one image of each class
    (two in all), not counting those that are taken for validation. All labels may lack classes.
    """
    if amount == "all" and not val_from_train:
        return total
    learned = max(2 if amount == "all" else classes, 2)
    least = learned
    while val_from_train and least - val_count(least) < learned:
        least += 1
    count = round(amount * total) if isinstance(amount, float) else total if amount == "all" else int(amount)
    if count > total:
        raise ConfigError(f"labels: {amount} labelled images asked for; {name} has {total} to learn from.")
    if count < least:
        raise ConfigError(
            f"labels: {amount} of {total} labelled images are {count}; {name} has {classes} classes, and at least "
            f"{least} images are needed{', or a split val besides' if val_from_train else ''}."
        )
    return count


def val_count(count: int) -> int:
    """Return how many of `count` training labels are taken for validation."""
    return max(1, count // VAL_DIVISOR)


def split_train_val(
    positions: NDArray[np.int64], classes: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split positions (N,) into those to train on and a fifth to validate on.

    With `classes`, their class ids (N,), each class gives up as many as its share of the images says, and keeps one at
    least: of many classes with a single image there are fewer than a fifth.
    """
    total, is_val = val_count(len(positions)), np.zeros(len(positions), bool)
    if classes is None:
        is_val[:total] = True
    else:
        ids, counts = np.unique(classes, return_counts=True)
        for class_id, number in zip(ids, _val_counts(counts, total), strict=True):
            is_val[np.flatnonzero(classes == class_id)[:number]] = True
    return positions[~is_val], positions[is_val]


def _val_counts(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Return how many of each class's images are for validation: `total` in proportion, by largest remainders.

    Each class keeps one to train on, unless that leaves none for validation.
    """
    quotas = total * counts / counts.sum()
    found = np.floor(quotas).astype(np.int64)
    spare = counts - found > 1
    missing = min(total - int(found.sum()), int(spare.sum()))
    found[np.lexsort((found - quotas, ~spare))[:missing]] += 1
    if not found.any():
        found[0] = 1
    return found
