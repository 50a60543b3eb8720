"""Base class of labels that list the objects in an image by scored boxes with classes: detection, masks, keypoints.

What such a label has besides its boxes, and how two of its objects are compared, its task says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.stores.codecs import flatten_lists
from pipeline.stores.labels import PROBABILITY, ClassAmounts, Label, Row, Value
from pipeline.stores.rasters import Box
from tasks.drawing import caption, outline, palette

MIN_VISIBLE = 0.3
"""Least share of a box's area that must lie inside a crop for the box to be kept."""


class InstanceLabel(Label):
    """Labels of `boxes`, `scores` and `classes`, an entry for each object, and the `size` of their image.

    A task with more about each object adds arrays (N, ...), which are dropped with the boxes.
    """

    noun: ClassVar[tuple[str, str]]
    """One object and several, in words."""
    amount_columns = ("classes", "probabilities")
    has_scores = True
    layer = "outlines"
    uses_pixels = True
    default_threshold = 0.5  # as in MuST
    can_be_weighted = False  # its loss is a mean over anchors and proposals that are drawn from each image

    def columns(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field("boxes", pa.list_(pa.list_(pa.float32(), 4)), metadata={"about": "x0 y0 x1 y1 in pixels"}),
                pa.field("scores", pa.list_(pa.float32())),
                pa.field(
                    "probabilities", pa.list_(pa.float32()), metadata={"about": "of the boxes, scores calibrated"}
                ),
                PROBABILITY,
                pa.field("classes", pa.list_(pa.int32())),
                pa.field("width", pa.int32(), metadata={"about": "of the image, pixels"}),
                pa.field("height", pa.int32(), metadata={"about": "of the image, pixels"}),
                pa.field("count", pa.int32(), metadata={"about": "boxes of any score"}),
                pa.field("count_50", pa.int32(), metadata={"about": "boxes with probability >= 0.5"}),
            ]
        )

    def encode(self, value: Value) -> Row:
        scores = value["scores"].astype(np.float32)
        probabilities = self.calibrate(scores)
        return {
            "confidence": float(scores.max(initial=0.0)),
            "probability": float(probabilities.max(initial=0.0)),
            "boxes": value["boxes"].astype(np.float32).tolist(),
            "scores": scores.tolist(),
            "probabilities": probabilities.tolist(),
            "classes": value["classes"].tolist(),
            "width": int(value["size"][0]),
            "height": int(value["size"][1]),
            "count": len(scores),
            "count_50": int((probabilities >= 0.5).sum()),
        }

    def decode(self, row: Row, threshold: float = 0.0) -> Value:
        value = self._objects(row)
        keep = np.array(row["probabilities"], dtype=np.float32) >= np.float32(threshold)
        if keep.shape != value["scores"].shape:
            raise ValueError(f"{keep.size} probabilities of {len(value['scores'])} objects")
        return self._select(value, keep)

    def _objects(self, row: Row) -> Value:
        """Return all objects of a row. Raises ValueError if they are none."""
        boxes = np.array(row["boxes"], dtype=np.float32).reshape(-1, 4)
        size = np.array([row["width"], row["height"]], dtype=np.int32)
        scores, classes = np.array(row["scores"], dtype=np.float32), np.array(row["classes"], dtype=np.int32)
        if not len(boxes) == len(scores) == len(classes):
            raise ValueError(f"{len(boxes)} boxes, {len(scores)} scores and {len(classes)} classes")
        if not (np.isfinite(boxes).all() and (boxes[:, :2] <= boxes[:, 2:]).all() and (size > 0).all()):
            raise ValueError(f"a box that is none, or an image of {size[0]} x {size[1]} pixels")
        self.check_class_ids(classes)
        return {"boxes": boxes, "scores": scores, "classes": classes, "size": size}

    def _select(self, value: Value, keep: NDArray[np.bool_]) -> Value:
        """Return the objects for which the mask (N,) is true."""
        return {name: array if name == "size" else array[keep] for name, array in value.items()}

    def class_amounts(self, table: pa.Table) -> ClassAmounts:
        rows, classes = flatten_lists(table.column("classes"))
        _, probabilities = flatten_lists(table.column("probabilities"))
        count = max(1, len(self.space.classes))
        pairs, inverse = np.unique(rows * count + classes, return_inverse=True)
        best = np.zeros(len(pairs), np.float32)
        np.maximum.at(best, inverse, probabilities)
        return ClassAmounts(pairs // count, pairs % count, best)

    def flip(self, value: Value) -> Value:
        x0, y0, x1, y1 = value["boxes"].T
        width = np.float32(value["size"][0])
        return {**value, "boxes": np.stack([width - x1, y0, width - x0, y1], axis=1)}

    def crop(self, value: Value, box: Box, size: tuple[int, int]) -> Value:
        """Move, scale and clip boxes, and drop those with less than MIN_VISIBLE of their area left."""
        shift, scale = crop_transform(value, box, size)
        moved = (value["boxes"] - np.tile(shift, 2)) * np.tile(scale, 2)
        new_size = np.array(size[::-1], dtype=np.int32)
        clipped = np.clip(moved, 0, np.tile(new_size, 2))
        visible = _area(clipped)
        keep = (visible > 0) & (visible >= MIN_VISIBLE * np.maximum(_area(moved), 1e-9))
        return self._select({**value, "boxes": clipped.astype(np.float32), "size": new_size}, keep)

    def draw(self, image: Image, value: Value) -> Image:
        drawn = image.copy()
        self._outline(drawn, value)
        probabilities = self.calibrate(value["scores"])
        for box, probability, class_id in zip(_boxes_in(drawn, value), probabilities, value["classes"], strict=True):
            text = f"{self.space.classes[class_id]} {probability:.0%}"
            caption(drawn, text, (float(box[0]), float(box[1])), above=True)
        return drawn

    def draw_plain(self, image: Image, value: Value, dashed: bool = False) -> Image:
        drawn = image.copy()
        self._outline(drawn, value, dashed)
        return drawn

    def _outline(self, image: Image, value: Value, dashed: bool = False) -> None:
        """Outline the objects on the image in the colors of their classes: here, by their boxes."""
        colors = palette(len(self.space.classes))
        for box, class_id in zip(_boxes_in(image, value), value["classes"], strict=True):
            outline(image, box, colors[class_id], dashed)

    def describe(self, value: Value) -> str:
        count = len(value["boxes"])
        return f"{count} {self.noun[count != 1]}"

    def describe_at(self, value: Value, point: tuple[float, float]) -> str:
        inside = self._at(value, point)
        best = inside[np.argsort(-value["scores"][inside], kind="stable")]
        found = zip(value["classes"][best], self.calibrate(value["scores"][best]), strict=True)
        return ", ".join(f"{self.space.classes[class_id]} {probability:.0%}" for class_id, probability in found)

    def _at(self, value: Value, point: tuple[float, float]) -> NDArray[np.intp]:
        """Return the indices of the objects at `point` = (x, y) in [0, 1] of the image: here, of boxes around it."""
        x, y = np.array(point) * value["size"]
        x0, y0, x1, y1 = value["boxes"].T
        return np.flatnonzero((x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1))

    def distance(self, one: Value, other: Value) -> float:
        """Return 1 - F1 of a greedy matching, best scores first, of objects of one class with an IoU of 0.5 or more."""
        total = len(one["boxes"]) + len(other["boxes"])
        return 1 - 2 * int(match_instances(one, other, self.overlaps).sum()) / total if total else 0.0

    @staticmethod
    def overlaps(one: Value, other: Value) -> NDArray[np.float64]:
        """Return the intersection over union (N, M) of the N objects of `one` and the M of `other`: here, of boxes."""
        return box_overlaps(one, other)

    def count(self, row: Row, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Count a box as its probability: most raw boxes are near-duplicates with scores near 0, not objects."""
        classes, amounts = np.array(row["classes"], dtype=np.int64), np.array(row["probabilities"], dtype=np.float32)
        self.check_class_ids(classes)
        total, kept = np.zeros(len(self.space.classes)), np.zeros(len(self.space.classes))
        np.add.at(total, classes, amounts)
        np.add.at(kept, classes, np.where(amounts >= np.float32(threshold), amounts, 0))
        return total, kept


def crop_transform(value: Value, box: Box, size: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (shift, scale), each (x, y): `(point - shift) * scale` is where a point in pixels lies after `crop`."""
    width, height = value["size"].astype(np.float64)
    shift = np.array([box[0] * width, box[1] * height])
    return shift, np.array([size[1] / ((box[2] - box[0]) * width), size[0] / ((box[3] - box[1]) * height)])


def _boxes_in(image: Image, value: Value) -> NDArray[np.float64]:
    """Return the boxes (N, 4) in pixels of an image of another size."""
    scale = np.array([image.width, image.height] * 2) / np.tile(value["size"], 2)
    return np.asarray(value["boxes"] * scale)


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)


Overlaps = Callable[[Value, Value], NDArray[np.float64]]
"""Of N objects and M others, as `InstanceLabel.overlaps` returns them."""


def match_instances(one: Value, other: Value, overlaps: Overlaps) -> NDArray[np.bool_]:
    """Return a mask (N,) of the objects of `one` that match one of `other`: of the same class, with an IoU from 0.5 on.

    Greedy, best scores first; each object of `other` is used once.
    """
    iou = overlaps(one, other)
    iou *= one["classes"][:, None] == other["classes"][None, :]
    matched = np.zeros(len(one["boxes"]), dtype=bool)
    for index in np.argsort(-one["scores"], kind="stable") if iou.size else ():
        partner = int(iou[index].argmax())
        if iou[index, partner] >= 0.5:
            iou[:, partner] = 0
            matched[index] = True
    return matched


def box_overlaps(one: Value, other: Value) -> NDArray[np.float64]:
    """Return the intersection over union (N, M) of the boxes of two labels, whose images may differ in size."""
    scale = np.tile(other["size"] / np.maximum(one["size"], 1), 2)
    return _iou(one["boxes"].astype(np.float64) * scale, other["boxes"].astype(np.float64))


def _iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union of boxes (N, 4) and (M, 4): (N, M)."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    intersection = np.prod(np.maximum(high - low, 0), axis=2)
    union = _area(one)[:, None] + _area(other)[None, :] - intersection
    return intersection / np.maximum(union, 1e-9)
