"""How much of the pseudo labels a threshold keeps, class by class, and whether it skews them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import tasks
from ingest.pool import pool_shards, rejected_rows
from pipeline.steps.artifact import Inputs, read_json
from pipeline.storage.root import StoredFile
from pipeline.stores.labels import LabelShard
from student.dataset import StudentHead

MOST_IMAGES = 5000
"""Images per teacher that are counted, about; of larger pools, every second, third ... shard."""
SKEW = 2.0
"""A warning is due if the class kept best keeps this many times the share of the class kept worst."""
RARE = 0.002
"""Classes with less than this share of all labels are left out of the warning: their shares are noise."""


def kept_shares(heads: Mapping[str, StudentHead], inputs: Inputs) -> dict[str, dict[str, Any]]:
    """Per teacher: classes, how much there is of each (boxes, pixels or images), the share kept, and a warning."""
    made = inputs["label"]
    index = made.load("labels.json", read_json)
    files = {(entry["set"], entry["shard"], entry["teacher"]): made.external_file(entry["path"]) for entry in index}
    shards = list(pool_shards(inputs["pool"], inputs.of_kind("data")))
    rejected = rejected_rows(inputs.artifacts)
    some = shards[:: max(1, sum(len(rows) for _, _, rows in shards) // MOST_IMAGES)]

    def used(teacher: str) -> list[tuple[StoredFile, set[int]]]:
        places = [((where, shard.name, teacher), rows) for where, shard, rows in some]
        return [(files[place], set(rows.tolist()) - rejected.get(place, frozenset())) for place, rows in places]

    return {name: _count(head, used(name)) for name, head in heads.items()}


def _count(head: StudentHead, shards: list[tuple[StoredFile, set[int]]]) -> dict[str, Any]:
    """`shards`: a teacher's label files, and which of their rows are in the pool and not rejected."""
    label = tasks.label(head.space)
    classes = list(head.space.classes) or [head.space.task]
    held, kept = np.zeros(len(classes)), np.zeros(len(classes))
    images = 0
    for file, used in shards:
        for number, row in enumerate(LabelShard(file, label).rows()):
            if number in used and row["status"] == "ok":
                total, left = label.count(row, head.threshold)
                held, kept, images = held + total, kept + left, images + 1
    return {
        "task": head.space.task,
        "threshold": head.threshold,
        "images": images,
        "classes": classes,
        "held": held.tolist(),
        "kept": kept.tolist(),
        "warning": skew_warning(classes, held, kept),
    }


def skew_warning(classes: list[str], held: np.ndarray[Any, Any], kept: np.ndarray[Any, Any]) -> str | None:
    """A sentence if the threshold keeps nothing, or much more of one class than of another; None if it does not."""
    if held.any() and not kept.any():
        return "the threshold keeps nothing: the student learns nothing from this teacher's labels"
    common = held >= max(1, RARE * held.sum())
    if common.sum() < 2 or (kept == held).all():
        return None
    shares = np.where(common, kept / np.maximum(held, 1), np.nan)
    best, worst = int(np.nanargmax(shares)), int(np.nanargmin(shares))
    if shares[best] < SKEW * shares[worst]:
        return None
    return (
        f"the threshold keeps {shares[best]:.0%} of {classes[best]!r} but {shares[worst]:.0%} of {classes[worst]!r}: "
        "the student sees the second class more rarely than the teacher did"
    )
