"""JSON lines: `predictions.jsonl`, an object for each image.

    {"file": "a.jpg", "key": "3f0a9c0b1d2e4f56", "width": 640, "height": 480, "labels": {"things": {"objects": [...]}}}

| task | the label |
|---|---|
| classification | `class`, null below the threshold, `score`, `probability`, and `best`: five classes with scores |
| multilabel | `classes`: those of a score of 0.5 or more, and `scores` of all by class, null where unknown |
| detection | `objects`: `class`, `box` (x0, y0, x1, y1 in pixels), `score`, `probability` |
| masks | `objects`, with `mask`, COCO's run lengths, and `area` in pixels |
| keypoints | `objects`, with `keypoints`: by name x, y in pixels and the score of those that are known |
| segmentation | `area`: share of the image by class, without those that are not there, and what its label store says |
| others | what its label store says in numbers, without the maps |

A score is the model's own, a probability is the score calibrated, where it could be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.export import BELOW_THRESHOLD, BaseWriter, ExportSample
from pipeline.stores.labels import PRESENT, Label, Value
from pipeline.stores.rle import as_coco, mask_area

FILE = "predictions.jsonl"
BEST = 5
"""The most classes that are listed of a classification."""
DIGITS = 6
"""Decimal digits of numbers."""


class Writer(BaseWriter):
    """Writes labels of every task: classes and boxes whole, of maps the numbers that sum them up."""

    supported = {  # noqa: RUF012 - a constant
        "classification": "all classes but the best",
        "multilabel": "",
        "detection": "",
        "masks": "",
        "keypoints": "whether a point is visible",
    }
    other_tasks = "the maps themselves"

    def __init__(self, folder: Path, heads: Mapping[str, Label]) -> None:
        super().__init__(folder, heads)
        self.locations = dict.fromkeys(heads, FILE)
        self._lines = self.files.enter_context(open(folder / FILE, "w", encoding="utf-8"))  # noqa: SIM115 - `files`

    def add(self, sample: ExportSample) -> None:
        width, height = sample.size
        about = {"file": sample.source, "key": sample.key, "width": width, "height": height}
        labels = {head: to_json(self.heads[head], value) for head, value in sample.values.items()}
        for head, value in sample.values.items():
            if self.heads[head].space.task == "classification" and not value["probs"].any():
                self.leave_out(head, BELOW_THRESHOLD)
        self._lines.write(json.dumps({**about, "labels": labels}, ensure_ascii=False, allow_nan=False) + "\n")


def to_json(label: Label, value: Value) -> dict[str, Any]:
    """Return a label as JSON, with names for its classes."""
    classes = label.space.classes
    match label.space.task:
        case "classification":
            return _classification(label, value)
        case "multilabel":
            scores = {name: _number(score) for name, score in zip(classes, value["probs"], strict=True)}
            present = np.flatnonzero(value["probs"] >= PRESENT)
            return {"classes": [classes[index] for index in present], "scores": scores}
        case "detection":
            return {"objects": _objects(label, value)}
        case "masks":
            width, height = value["size"].tolist()
            pixels = [
                {"area": mask_area(mask, (width, height)), "mask": as_coco(mask, (width, height))}
                for mask in value["masks"]
            ]
            return {"objects": [{**one, **more} for one, more in zip(_objects(label, value), pixels, strict=True)]}
        case "keypoints":
            points = [{"keypoints": each} for each in _keypoints(label, value)]
            return {"objects": [{**one, **more} for one, more in zip(_objects(label, value), points, strict=True)]}
    return _scalars(label, value)


def _objects(label: Label, value: Value) -> list[dict[str, Any]]:
    columns = value["classes"], value["boxes"], value["scores"], label.calibrate(value["scores"])
    return [
        {
            "class": label.space.classes[index],
            "box": [_number(side) for side in box],
            "score": _number(score),
            "probability": _number(probability),
        }
        for index, box, score, probability in zip(*columns, strict=True)
    ]


def _keypoints(label: Label, value: Value) -> list[dict[str, list[Any]]]:
    """Return of each object [x, y, score] of each known point by its name."""
    numbers = np.concatenate([value["keypoints"], value["keypoint_scores"][..., None]], axis=2)
    return [
        {
            name: list(map(_number, point))
            for name, point, seen in zip(label.space.skeleton.points, points, visibility, strict=True)
            if seen
        }
        for points, visibility in zip(numbers, value["visibility"], strict=True)
    ]


def _classification(label: Label, value: Value) -> dict[str, Any]:
    probs, calibrated = value["probs"], label.calibrate(value["probs"])
    best = [int(index) for index in np.argsort(-probs, kind="stable")[:BEST] if probs[index]]
    top = best[0] if best else None
    return {
        "class": None if top is None else label.space.classes[top],
        "score": None if top is None else _number(probs[top]),
        "probability": None if top is None else _number(calibrated[top]),
        "best": [{"class": label.space.classes[index], "score": _number(probs[index])} for index in best],
    }


def _scalars(label: Label, value: Value) -> dict[str, Any]:
    """Return the columns of the label's row but for blobs, with classes named where there is a number for each."""
    row, found = label.encode(value), {}
    for field in label.columns():
        entry = row[field.name]
        if pa.types.is_binary(field.type):
            continue
        if isinstance(entry, list) and len(entry) == len(label.space.classes):
            found[field.name] = {
                name: _number(each) for name, each in zip(label.space.classes, entry, strict=True) if each
            }
        else:
            found[field.name] = _number(entry)
    return found


def _number(entry: Any) -> Any:
    """Return a number as JSON holds it, null for NaN; anything else as it is."""
    if isinstance(entry, float | np.floating):
        return None if np.isnan(entry) else round(float(entry), DIGITS)
    return entry.item() if isinstance(entry, np.integer) else entry
