"""Feature maps on disk and drawn: what a published backbone makes of each part of an image, for others to learn."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.stores import codecs
from pipeline.stores.labels import Row, Value
from pipeline.stores.rasters import FULL_IMAGE, Box, cell_at, cosines, mean_where_known, resample_linear
from tasks.drawing import enlarge
from tasks.raster import SIZE_COLUMNS, RasterLabel

LARGEST = 127
"""The largest number of a signed byte."""
SHOWN = 3
"""Components that are drawn and described."""


class TaskLabel(RasterLabel):
    """`map` (h, w, K) float32, a raster over the image: the first K principal components of a teacher's cells, largest
    variance first; all 0 = unknown.

    The classes of the label space number the components. They are centered, and divided by one number, so that their
    variances have the mean 1 over cells of the images that the teacher was fitted on: distances and angles are those of
    the teacher's own cells. Stored as signed bytes, in steps of 1/127 of the largest absolute value of the image: off
    by at most half a step, and 2^-23 of itself. A cell within half a step of 0 in all components becomes unknown.
    Features have no score, so a threshold drops nothing. Views are interpolated between known cells.
    """

    can_be_live = True
    task = "feature_maps"
    stride = 16
    unknown = {"map": 0.0}  # noqa: RUF012 - a constant
    legend = "red, green and blue grow with the first three principal components; gray is their mean, black unknown"

    def columns(self) -> pa.Schema:
        about = "int8 (h, w, K), zstd; times `scale` the principal components; 0 in all K = unknown"
        length = "root mean square of the components, over known cells; 1 or more is usual"
        return pa.schema(
            [
                pa.field("map", pa.binary(), metadata={"about": about}),
                pa.field("scale", pa.float32(), metadata={"about": "what 1 in `map` stands for"}),
                *SIZE_COLUMNS,
                pa.field("length", pa.float32(), metadata={"about": length}),
                pa.field("unknown", pa.float32(), metadata={"about": "share of the image that is unknown"}),
            ]
        )

    def encode(self, value: Value) -> Row:
        components = value["map"]
        known = components.any(axis=-1)
        scale = np.maximum(np.abs(components).max() / LARGEST, np.finfo(np.float32).tiny).astype(np.float32)
        return {
            "confidence": 1.0 if known.any() else 0.0,
            "map": codecs.pack(np.rint(components / scale).astype(np.int8)),
            "scale": float(scale),
            "h": components.shape[0],
            "w": components.shape[1],
            "length": float(np.sqrt(np.square(components[known], dtype=np.float64).mean())) if known.any() else 0.0,
            "unknown": float(1 - known.mean()),
        }

    def decode(self, row: Row, threshold: float = 0.0) -> Value:
        stored = codecs.unpack(row["map"], np.int8, (row["h"], row["w"], len(self.space.classes)))
        components = stored * np.float32(row["scale"])
        if not np.isfinite(components).all():
            raise ValueError("components that are not finite")
        return {"map": components}

    def crop(self, value: Value, box: Box, size: tuple[int, int]) -> Value:
        return {"map": resample_linear(value["map"], box, size)}

    def draw(self, image: Image, value: Value) -> Image:
        """Draw the cosines of a cell's vector with the first three axes: in one scale for all images and teachers."""
        components = value["map"].astype(np.float64)
        length = np.linalg.norm(components, axis=-1, keepdims=True)
        axes = np.zeros((*components.shape[:2], SHOWN))
        axes[..., : components.shape[-1]] = components[..., :SHOWN] / np.maximum(length, np.finfo(np.float64).tiny)
        colors = np.rint((np.clip(axes, -0.5, 0.5) + 0.5) * 255) * (length > 0)
        return enlarge(colors.astype(np.uint8), image.size)

    def describe_at(self, value: Value, point: tuple[float, float]) -> str:
        components = cell_at(value["map"], point)
        return " ".join(f"{component:+.1f}" for component in components[:SHOWN]) if components.any() else ""

    def distance(self, one: Value, other: Value) -> float:
        """Return the mean of (1 - cos) / 2 of the angles between the vectors, over the cells known to both."""
        size = max(one["map"].shape[0], other["map"].shape[0]), max(one["map"].shape[1], other["map"].shape[1])
        left, right = (resample_linear(each["map"].astype(np.float64), FULL_IMAGE, size) for each in (one, other))
        apart = np.clip((1 - cosines(left, right)) / 2, 0, 1)
        return mean_where_known(apart, np.asarray(left.any(axis=-1)), np.asarray(right.any(axis=-1)))

    def count(self, row: Row, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        known, _ = super().count(row, threshold)
        held = np.repeat(known, len(self.space.classes))
        return held, held
