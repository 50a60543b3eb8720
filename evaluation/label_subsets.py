"""Few labels: which images are learned from, which decide, and which are reported on. No torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingest.dataset import IngestedSet
from ingest.true_labels import CLASSIFICATION, class_ids, held_out_keys, true_label_dataset
from pipeline.data.dataset import ImageDataset
from pipeline.data.sampling import random_order
from pipeline.errors import ConfigError
from pipeline.recipe.comparison import TRIAL
from pipeline.recipe.evaluation import Amount
from pipeline.steps.artifact import Inputs
from pipeline.stores.labels import LabelSpace

TASK = CLASSIFICATION
"""What probes learn."""
FIFTH = 5
"""Where a set has one held-out split alone, one part in FIFTH of the labels that are learned from decides instead."""


@dataclasses.dataclass(frozen=True)
class Splits:
    """Images with labels of one task: to learn from, to decide by (None: some of the former do), to report on."""

    train: ImageDataset
    val: ImageDataset | None
    test: ImageDataset
    name: str
    """The name of the split that is reported on."""
    space: LabelSpace

    @property
    def classes(self) -> int:
        """Of how many classes an image is one; 0 for tasks other than classification."""
        return len(self.space.classes) if self.space.task == TASK else 0

    @functools.cached_property
    def numbers(self) -> NDArray[np.int64]:
        """Of classification, the class of each image to learn from."""
        return class_ids(self.train, TASK)

    def order(self, seed: int) -> NDArray[np.int64]:
        """All positions to learn from, in an order whose beginnings are the small sets of labels."""
        return order_of(self.train.keys(), self.numbers if self.classes else None, seed)


class LabelRequest(NamedTuple):
    """What a step that probes or fine-tunes learns from and reports on for a task, and how many labelled images each of
    the amounts means that it is asked for.
    """

    splits: Splits
    counts: dict[Amount, int]


def asked_of(config: Mapping[str, Any], inputs: Inputs) -> dict[str, LabelRequest]:
    """What is asked of a step that probes or fine-tunes, by task; without tasks that its set has no labels of to learn
    from or to report on. ConfigError if nothing is left for a row of a comparison, or if the set lacks labels.
    """
    found, what = IngestedSet(inputs[f"data.{config['set']}"]), config["set"]
    wanted = [TASK] if "probes" in config else list(found.spaces)
    there = {task: splits for task in wanted if (splits := splits_of(found, task, config["splits"]))}
    if TRIAL in config and not there:
        raise ConfigError(
            f"the set {what!r} has no {'class ' if 'probes' in config else ''}labels to learn from, or none held out "
            f"to measure on; its splits: {found.splits}."
        )
    return {task: LabelRequest(splits, _counts(splits, config["labels"], what)) for task, splits in there.items()}


def _counts(splits: Splits, amounts: Sequence[Amount], what: str) -> dict[Amount, int]:
    there, apart = len(splits.train), splits.val is None
    return {amount: count_of(amount, there, splits.classes, what, apart) for amount in amounts}


def splits_of(found: IngestedSet, task: str, preferred: str) -> Splits | None:
    """The splits for a task, None if the set has no labels of it to learn from or none to report on. What decides is
    never reported on, also where the same image is in both splits.
    """
    test = found.held_out_split(preferred, task)
    if test is None or not found.counts.get(f"labels.{task}.train"):
        return None
    heads = {task: task}
    train = true_label_dataset(found, "train", heads, held_out_keys(found))
    if not len(train):
        return None
    val = _deciding(found, task) if test == "test" else None
    return Splits(train, val, true_label_dataset(found, test, heads), test, found.spaces[task])


def _deciding(found: IngestedSet, task: str) -> ImageDataset | None:
    """The validation images that are not tested on, None if there are none."""
    if not found.counts.get(f"labels.{task}.val"):
        return None
    tested = {key for shard in found.images("test").shards for key in shard.keys}
    val = true_label_dataset(found, "val", {task: task}, tested)
    return val if len(val) else None


def order_of(keys: Sequence[str], classes: NDArray[np.int64] | None, seed: int) -> NDArray[np.int64]:
    """The positions of all keys in an order whose beginnings are the small sets of labels: at random, the classes in
    turn where there are any, so that each beginning is as balanced as can be and a part of any longer one.
    """
    order = random_order(keys, seed)
    if classes is None:
        return order
    drawn = classes[order]
    rank = np.empty(len(order), np.int64)
    for number in np.unique(drawn):
        rank[drawn == number] = np.arange((drawn == number).sum())
    return order[np.argsort(rank, kind="stable")]


def count_of(amount: Amount, there: int, classes: int, what: str, apart: bool = False) -> int:
    """How many labelled images an amount means. ConfigError if there are not so many, or fewer than classes in what is
    learned from, without what is set `apart` to decide by.
    """
    if amount == "all":
        if apart and there == aside_of(there):
            raise ConfigError(f"labels: {what} has {there} labelled image, to learn from and to decide by: too few.")
        return there
    least = max(classes, 2)
    while apart and least - aside_of(least) < max(classes, 2):
        least += 1
    count = round(amount * there) if isinstance(amount, float) else int(amount)
    if count > there:
        raise ConfigError(f"labels: {amount} labelled images asked for; {what} has {there} to learn from.")
    if count < least:
        raise ConfigError(
            f"labels: {amount} of {there} labelled images are {count}; {what} has {classes} classes, and at least "
            f"{least} images are needed."
        )
    return count


def aside_of(count: int) -> int:
    """How many of so many labels decide, where nothing else does."""
    return max(1, count // FIFTH)


def parts(order: NDArray[np.int64], count: int, apart: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first `count` positions: those to learn from, and, set `apart` from them, those to decide by (else none)."""
    aside = aside_of(count) if apart else 0
    return order[aside:count], order[:aside]
