"""Few labels: which images are learned from, which decide, and which are reported on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.draws import random_order
from pipeline.errors import ConfigError
from pipeline.evaluating import Amount
from pipeline.library import Library
from tasks.ingest import IngestedSet
from tasks.shelves import class_numbers, held_out_keys, truth_library

FIFTH = 5
"""Where a set has one held-out split alone, one part in FIFTH of the labels that are learned from decides instead."""


class Splits(NamedTuple):
    """Images with labels of one task: to learn from, to decide by (None: some of the former do), to report on."""

    train: Library
    val: Library | None
    test: Library
    name: str
    """The name of the split that is reported on."""


def splits_of(found: IngestedSet, task: str, preferred: str) -> Splits | None:
    """The splits for a task, None if the set has no labels of it to learn from or none to report on. What decides is
    never reported on, also where the same image is in both splits.
    """
    test = found.held_out(preferred, task)
    if test is None or not found.counts.get(f"labels.{task}.train"):
        return None
    heads = {task: task}
    train = truth_library(found, "train", heads, held_out_keys(found))
    if not len(train):
        return None
    return Splits(train, _deciding(found, task) if test == "test" else None, truth_library(found, test, heads), test)


def _deciding(found: IngestedSet, task: str) -> Library | None:
    """The validation images that are not tested on, None if there are none."""
    if not found.counts.get(f"labels.{task}.val"):
        return None
    tested = {key for shard in found.images("test").shards for key in shard.keys}
    val = truth_library(found, "val", {task: task}, tested)
    return val if len(val) else None


def order_of(library: Library, task: str, seed: int) -> NDArray[np.int64]:
    """All positions in an order whose beginnings are the small sets of labels: at random, the classes in turn where
    there are any, so that each beginning is as balanced as can be and a part of any longer one.
    """
    order = random_order(library.keys(), seed)
    if task != "classification":
        return order
    classes = class_numbers(library, task)[order]
    rank = np.empty(len(order), np.int64)
    for number in np.unique(classes):
        rank[classes == number] = np.arange((classes == number).sum())
    return order[np.argsort(rank, kind="stable")]


def count_of(amount: Amount, there: int, classes: int, what: str, apart: bool = False) -> int:
    """How many labelled images an amount means. ConfigError if there are not so many, or fewer than classes in what is
    learned from, without what is set `apart` to decide by.
    """
    if amount == "all":
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
