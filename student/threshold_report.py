"""Threshold report: the share of pseudo labels that a threshold keeps, by class, and a warning if it skews classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import tasks
from ingest.pool import pool_shards, rejected_rows
from pipeline.steps.artifact import Inputs, read_json
from pipeline.storage.root import StoredFile
from pipeline.stores.labels import Label, LabelShard, explain_label_errors, is_applicable
from pipeline.stores.naming import LABEL_INDEX, learned_labels
from student.dataset import StudentHead

MAX_IMAGES = 5000
"""Images per teacher that are counted, about: of a larger pool, every second, third ... shard."""
SKEW = 2.0
"""Ratio of the largest to the smallest share kept of a class, from which on there is a warning."""
RARE = 0.002
"""Share of all labels below which a class is left out of the warning, as its share kept is noise."""


def count_kept(heads: Mapping[str, StudentHead], inputs: Inputs) -> dict[str, dict[str, Any]]:
    """Count by teacher, for each class, the boxes, pixels or images `held` and `kept`, with a warning or None."""
    labels = inputs[learned_labels(inputs.artifacts)]
    index = labels.load(LABEL_INDEX, read_json)
    files = {(entry["set"], entry["shard"], entry["teacher"]): labels.external_file(entry["path"]) for entry in index}
    shards = list(pool_shards(inputs["pool"], inputs.of_kind("data")))
    rejected = rejected_rows(inputs.artifacts)
    counted = shards[:: max(1, sum(len(rows) for _, _, rows in shards) // MAX_IMAGES)]

    def label_files(teacher: str) -> list[tuple[StoredFile, set[int]]]:
        keys = [((dataset, shard.name, teacher), rows) for dataset, shard, rows in counted]
        labelled = [(key, rows) for key, rows in keys if key in files]
        return [(files[key], set(rows.tolist()) - rejected.get(key, frozenset())) for key, rows in labelled]

    return {name: _count(head, label_files(name)) for name, head in heads.items()}


def _count(head: StudentHead, files: list[tuple[StoredFile, set[int]]]) -> dict[str, Any]:
    """Count a teacher's labels in these files, in the given rows: those in the pool and not rejected."""
    classes = list(head.space.classes) or [head.space.task]
    held, kept = np.zeros(len(classes)), np.zeros(len(classes))
    images, inapplicable, label = 0, 0, tasks.label(head.space)
    for file, rows in files:
        shard = LabelShard(file, label)
        label = shard.label
        for number, row in enumerate(shard.rows()):
            if number in rows and row["status"] == "ok":
                with explain_label_errors(file, row["key"]):
                    row_held, row_kept = label.count(row, head.threshold)
                held, images = held + row_held, images + 1
                if is_applicable(row, head.applicability):
                    kept += row_kept
                else:
                    inapplicable += 1
    warning = skew_warning(classes, held, kept)
    return {
        "task": head.space.task,
        "threshold": head.threshold,
        "calibrated": label.calibration is not None,
        "images": images,
        "applicability": head.applicability,
        "inapplicable": inapplicable,
        "classes": classes,
        "held": held.tolist(),
        "kept": kept.tolist(),
        "warning": warning if kept.any() or warning is None else warning + _calibration_note(head, label),
    }


def _calibration_note(head: StudentHead, label: Label) -> str:
    """Return what a calibration has to do with a threshold that keeps nothing, and what to do; "" without one."""
    if label.calibration is None:
        return ""
    surest = float(label.calibrate(np.ones(1))[0])
    return (
        f". Its scores are calibrated: the highest are right in {surest:.0%} of the cases, and the threshold is "
        f"{head.threshold:.0%}. Lower student.thresholds.{head.teacher}, or set teachers.{head.teacher}.calibrate to "
        "null, and the threshold is compared with the scores themselves"
    )


def skew_warning(classes: list[str], held: np.ndarray[Any, Any], kept: np.ndarray[Any, Any]) -> str | None:
    """Return a sentence if the threshold keeps nothing (of all or of the common classes) or skews them, else None."""
    if held.any() and not kept.any():
        return "the threshold keeps nothing: the student learns none of the classes from this teacher"
    common = held >= max(1, RARE * held.sum())
    if common.sum() < 2 or (kept == held).all():
        return None
    shares = np.where(common, kept / np.maximum(held, 1), np.nan)
    best, worst = int(np.nanargmax(shares)), int(np.nanargmin(shares))
    if shares[best] == 0:
        return "the threshold keeps nothing of the common classes: the student learns only rare ones from this teacher"
    if shares[best] < SKEW * shares[worst]:
        return None
    return (
        f"the threshold keeps {shares[best]:.0%} of {classes[best]!r} but {shares[worst]:.0%} of {classes[worst]!r}: "
        "the student sees the second class more rarely than the teacher did"
    )
