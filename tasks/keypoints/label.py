"""Labels of keypoints on disk and drawn: scored boxes with classes, and the named points of each object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.stores.labels import Row, Value
from pipeline.stores.rasters import Box
from pipeline.stores.skeleton import UNKNOWN, VISIBLE
from tasks.drawing import draw_points, palette
from tasks.instances import InstanceLabel, crop_transform
from tasks.keypoints.oks import similarities

POINT_ARRAYS = ("keypoints", "visibility", "keypoint_scores")


class TaskLabel(InstanceLabel):
    """`boxes`, `scores`, `classes` and `size` as of detection; of the K points of each object that `space.skeleton`
    names `keypoints` (N, K, 2) float32, x and y in pixels, `visibility` (N, K) uint8, UNKNOWN, HIDDEN or VISIBLE, and
    `keypoint_scores` (N, K) float32 in [0, 1]; and `areas` (N,) float32, pixels that the object covers, by which COCO
    tells how far off a point may be.

    Stored without loss. True points have a score of 1; predicted ones are VISIBLE and have their own. An unknown point
    is at 0, 0 with a score of 0. No object can be unknown: N = 0 states that the image shows none of the classes. A
    threshold drops objects that are less probable, and makes points unknown whose score is lower. An object's
    probability is the precision at a similarity of 0.5 of objects with its score.
    """

    task = "keypoints"
    noun = "object with keypoints", "objects with keypoints"
    unit = "objects (keypoints by the probability of their object)"

    def columns(self) -> pa.Schema:
        numbers = pa.list_(pa.list_(pa.float32()))
        return pa.schema(
            [
                *super().columns(),
                pa.field("keypoints", numbers, metadata={"about": "of each object x y of each point, pixels"}),
                pa.field(
                    "visibility",
                    pa.list_(pa.list_(pa.uint8())),
                    metadata={"about": "of the points: 0 unknown, 1 hidden, 2 visible"},
                ),
                pa.field("keypoint_scores", numbers, metadata={"about": "of the points, in [0, 1]"}),
                pa.field("areas", pa.list_(pa.float32()), metadata={"about": "of the objects, pixels"}),
                pa.field("count_keypoints", pa.int32(), metadata={"about": "points that are not unknown"}),
            ]
        )

    def encode(self, value: Value) -> Row:
        points = value["keypoints"].astype(np.float32)
        return {
            **super().encode(value),
            "keypoints": points.reshape(points.shape[0], 2 * points.shape[1]).tolist(),
            "visibility": value["visibility"].tolist(),
            "keypoint_scores": value["keypoint_scores"].astype(np.float32).tolist(),
            "areas": value["areas"].astype(np.float32).tolist(),
            "count_keypoints": int((value["visibility"] > UNKNOWN).sum()),
        }

    def decode(self, row: Row, threshold: float = 0.0) -> Value:
        value = super().decode(row, threshold)
        return _forget(value, value["keypoint_scores"] < np.float32(threshold))

    def _objects(self, row: Row) -> Value:
        value = super()._objects(row)
        shape = len(value["boxes"]), len(self.space.skeleton.points)
        keypoints = _array(row["keypoints"], np.float32, (shape[0], shape[1] * 2)).reshape(*shape, 2)
        visibility = _array(row["visibility"], np.uint8, shape)
        scores = _array(row["keypoint_scores"], np.float32, shape)
        areas = _array(row["areas"], np.float32, shape[:1])
        if not (np.isfinite(keypoints).all() and (visibility <= VISIBLE).all()):
            raise ValueError("a keypoint that is none")
        if not (((scores >= 0) & (scores <= 1)).all() and (np.isfinite(areas) & (areas >= 0)).all()):
            raise ValueError("a keypoint's score or an area that is none")
        found = {"keypoints": keypoints, "visibility": visibility, "keypoint_scores": scores, "areas": areas}
        return {**value, **found}

    def flip(self, value: Value) -> Value:
        """Mirror boxes and points, and exchange the left and right ones."""
        order = self.space.skeleton.mirror_order()
        flipped = super().flip(value) | {name: value[name][:, order] for name in POINT_ARRAYS}
        x, y = np.moveaxis(flipped["keypoints"], 2, 0)
        mirrored = np.stack([np.float32(value["size"][0]) - x, y], axis=2)
        return _forget({**flipped, "keypoints": mirrored}, flipped["visibility"] == UNKNOWN)

    def crop(self, value: Value, box: Box, size: tuple[int, int]) -> Value:
        """Crop boxes as those of detection, and move the points; those outside become unknown."""
        shift, scale = crop_transform(value, box, size)
        cropped = super().crop(value, box, size)
        moved = (cropped["keypoints"] - shift) * scale
        outside = ((moved < 0) | (moved > cropped["size"])).any(axis=2)
        areas = (cropped["areas"] * np.prod(scale)).astype(np.float32)
        placed = {**cropped, "keypoints": moved.astype(np.float32), "areas": areas}
        return _forget(placed, outside | (cropped["visibility"] == UNKNOWN))

    def _outline(self, image: Image, value: Value, dashed: bool = False) -> None:
        """Outline the boxes, and draw the known points, visible ones as discs, joined as the skeleton says."""
        super()._outline(image, value, dashed)
        colors = palette(len(self.space.classes))[value["classes"]]
        places = value["keypoints"] * (np.array(image.size) / value["size"])
        for points, visibility, color in zip(places, value["visibility"], colors, strict=True):
            known = np.flatnonzero(visibility > UNKNOWN).tolist()
            edges = [pair for pair in self.space.skeleton.edges if set(pair) <= set(known)]
            lines = [(known.index(one), known.index(other)) for one, other in edges]
            draw_points(image, points[known], visibility[known] == VISIBLE, lines, color)

    @staticmethod
    def overlaps(one: Value, other: Value) -> NDArray[np.float64]:
        """Return COCO's object keypoint similarity (N, M)."""
        return similarities(one, other)


def _forget(value: Value, points: NDArray[np.bool_]) -> Value:
    """Return a label in which these points (N, K) are unknown."""
    return {
        **value,
        "keypoints": np.where(points[..., None], np.float32(0), value["keypoints"]),
        "visibility": np.where(points, np.uint8(UNKNOWN), value["visibility"]),
        "keypoint_scores": np.where(points, np.float32(0), value["keypoint_scores"]),
    }


def _array(column: Any, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a list column of a row as an array. Raises ValueError if it has another shape."""
    if not (found := np.array(column, dtype=dtype)).size and not shape[0]:
        return found.reshape(shape)
    if found.shape != shape:
        raise ValueError(f"an array of shape {found.shape} instead of {shape}")
    return found
