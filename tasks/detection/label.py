"""Detection labels on disk and drawn: scored boxes with classes."""

from __future__ import annotations

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


class TaskLabel(Label):
    """`boxes` (N, 4) float32, x0 y0 x1 y1 in pixels from the top left corner; `scores` (N,) float32 in [0, 1];
    `classes` (N,) int32, ids from 0; and `size` (2,) int32, (width, height) of the image that boxes are measured in.

    Stored without loss. Nothing can be unknown: N = 0 states that the image shows none of the classes. A threshold
    drops boxes that are less probable. A box's probability is the precision at an IoU of 0.5 of boxes with its score
    (Kueppers et al., CVPRW 2020).
    """

    task = "detection"
    amount_columns = ("classes", "probabilities")
    has_scores = True
    unit = "objects (boxes by their probability)"
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
        boxes = np.array(row["boxes"], dtype=np.float32).reshape(-1, 4)
        size = np.array([row["width"], row["height"]], dtype=np.int32)
        scores, classes = np.array(row["scores"], dtype=np.float32), np.array(row["classes"], dtype=np.int32)
        if not len(boxes) == len(scores) == len(classes):
            raise ValueError(f"{len(boxes)} boxes, {len(scores)} scores and {len(classes)} classes")
        if not (np.isfinite(boxes).all() and (boxes[:, :2] <= boxes[:, 2:]).all() and (size > 0).all()):
            raise ValueError(f"a box that is none, or an image of {size[0]} x {size[1]} pixels")
        self.check_class_ids(classes)
        keep = np.array(row["probabilities"], dtype=np.float32) >= np.float32(threshold)
        return _select({"boxes": boxes, "scores": scores, "classes": classes, "size": size}, keep)

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
        width, height = value["size"].astype(np.float64)
        shift = np.array([box[0] * width, box[1] * height] * 2)
        scale = np.array([size[1] / ((box[2] - box[0]) * width), size[0] / ((box[3] - box[1]) * height)] * 2)
        moved, new_size = (value["boxes"] - shift) * scale, np.array(size[::-1], dtype=np.int32)
        clipped = np.clip(moved, 0, np.tile(new_size, 2))
        visible = _area(clipped)
        keep = (visible > 0) & (visible >= MIN_VISIBLE * np.maximum(_area(moved), 1e-9))
        return _select({**value, "boxes": clipped.astype(np.float32), "size": new_size}, keep)

    def draw(self, image: Image, value: Value) -> Image:
        drawn = image.copy()
        probabilities = self.calibrate(value["scores"])
        for box, probability, class_id in zip(
            self._outline(drawn, value), probabilities, value["classes"], strict=True
        ):
            text = f"{self.space.classes[class_id]} {probability:.0%}"
            caption(drawn, text, (float(box[0]), float(box[1])), above=True)
        return drawn

    def draw_plain(self, image: Image, value: Value, dashed: bool = False) -> Image:
        drawn = image.copy()
        self._outline(drawn, value, dashed)
        return drawn

    def _outline(self, image: Image, value: Value, dashed: bool = False) -> NDArray[np.float64]:
        """Outline the boxes in the colors of their classes; return them in pixels of the image."""
        colors = palette(len(self.space.classes))
        boxes = value["boxes"] * (np.array([image.width, image.height] * 2) / np.tile(value["size"], 2))
        for box, class_id in zip(boxes, value["classes"], strict=True):
            outline(image, box, colors[class_id], dashed)
        return np.asarray(boxes)

    def describe(self, value: Value) -> str:
        count = len(value["boxes"])
        return f"{count} box{'' if count == 1 else 'es'}"

    def describe_at(self, value: Value, point: tuple[float, float]) -> str:
        x, y = np.array(point) * value["size"]
        x0, y0, x1, y1 = value["boxes"].T
        inside = np.flatnonzero((x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1))
        best = inside[np.argsort(-value["scores"][inside], kind="stable")]
        found = zip(value["classes"][best], self.calibrate(value["scores"][best]), strict=True)
        return ", ".join(f"{self.space.classes[class_id]} {probability:.0%}" for class_id, probability in found)

    def distance(self, one: Value, other: Value) -> float:
        """Return 1 - F1 of a greedy matching, best scores first, of boxes of one class with an IoU of 0.5 or more."""
        total = len(one["boxes"]) + len(other["boxes"])
        return 1 - 2 * int(match_boxes(one, other).sum()) / total if total else 0.0

    def count(self, row: Row, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Count a box as its probability: most raw boxes are near-duplicates with scores near 0, not objects."""
        classes, amounts = np.array(row["classes"], dtype=np.int64), np.array(row["probabilities"], dtype=np.float32)
        self.check_class_ids(classes)
        total, kept = np.zeros(len(self.space.classes)), np.zeros(len(self.space.classes))
        np.add.at(total, classes, amounts)
        np.add.at(kept, classes, np.where(amounts >= np.float32(threshold), amounts, 0))
        return total, kept


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)


def match_boxes(one: Value, other: Value) -> NDArray[np.bool_]:
    """Return a mask (N,) of the boxes of `one` that match one of `other`: of the same class, with an IoU from 0.5 on.

    Greedy, best scores first; each box of `other` is used once.
    """
    scale = np.tile(other["size"] / np.maximum(one["size"], 1), 2)
    iou = _iou(one["boxes"].astype(np.float64) * scale, other["boxes"].astype(np.float64))
    iou *= one["classes"][:, None] == other["classes"][None, :]
    matched = np.zeros(len(one["boxes"]), dtype=bool)
    for index in np.argsort(-one["scores"], kind="stable") if iou.size else ():
        partner = int(iou[index].argmax())
        if iou[index, partner] >= 0.5:
            iou[:, partner] = 0
            matched[index] = True
    return matched


def _iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union of boxes (N, 4) and (M, 4): (N, M)."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    intersection = np.prod(np.maximum(high - low, 0), axis=2)
    union = _area(one)[:, None] + _area(other)[None, :] - intersection
    return intersection / np.maximum(union, 1e-9)


def _select(value: Value, keep: NDArray[np.bool_]) -> Value:
    return {name: array if name == "size" else array[keep] for name, array in value.items()}
