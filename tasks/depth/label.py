"""Depth labels: how far away each pixel is."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.stores import codecs
from pipeline.stores.labels import Box, Label, Row, Value, cell, gather, on_one_raster, share_apart
from tasks.drawing import caption, colormap, enlarge

EXTREMES = (1, 99)
"""Percentiles between which depths are told and coloured."""


class TaskLabel(Label):
    """`depth` (h, w) float32, a raster over the image; 0 = unknown.

    Metric: metres along the optical axis. Relative: inverse depth, larger is nearer, known up to scale and shift.
    Stored as float16: off by at most 2^-11 of the value (0.05 %), for values from 6.1e-5 to 65,504.
    A depth has no score of its own, so a threshold drops nothing: every pixel of a teacher is kept, as in MuST.
    """

    task = "depth"
    reading = "violet is near, yellow far, over the range that stands below each picture"

    def columns(self) -> pa.Schema:
        unit = "metres" if self.space.scale == "metric" else "inverse depth, arbitrary scale and shift"
        return pa.schema(
            [
                pa.field("depth", pa.binary(), metadata={"about": f"float16 (h, w), {unit}, 0 = unknown, zstd"}),
                pa.field("h", pa.int32()),
                pa.field("w", pa.int32()),
                pa.field("near", pa.float32(), metadata={"about": f"smallest known value, {unit}"}),
                pa.field("far", pa.float32(), metadata={"about": f"largest known value, {unit}"}),
                pa.field("unknown", pa.float32(), metadata={"about": "share of the image that is unknown"}),
            ]
        )

    def encode(self, value: Value) -> Row:
        depth = value["depth"]
        known = depth[depth > 0]
        return {
            "confidence": 1.0 if known.size else 0.0,
            "depth": codecs.pack(depth.astype(np.float16)),
            "h": depth.shape[0],
            "w": depth.shape[1],
            "near": float(known.min()) if known.size else None,
            "far": float(known.max()) if known.size else None,
            "unknown": 1 - known.size / depth.size,
        }

    def decode(self, row: Row, threshold: float = 0.0) -> Value:
        return {"depth": codecs.unpack(row["depth"], np.float16, (row["h"], row["w"])).astype(np.float32)}

    def flip(self, value: Value) -> Value:
        return {"depth": value["depth"][:, ::-1]}

    def crop(self, value: Value, box: Box, size: tuple[int, int]) -> Value:
        """Resampled, never rescaled: metres stay metres whatever the zoom."""
        return {"depth": gather(value["depth"], box, size, 0.0)}

    def draw(self, image: Image, value: Value) -> Image:
        depth = value["depth"]
        known = depth > 0
        if not known.any():
            return image.copy()
        low, high = np.percentile(depth[known], EXTREMES)
        colours = colormap((depth - low) / max(high - low, 1e-6)) * known[..., None].astype(np.uint8)
        drawn = enlarge(colours, image.size)
        caption(drawn, self.describe(value), (0, drawn.height))
        return drawn

    def describe(self, value: Value) -> str:
        known = value["depth"][value["depth"] > 0]
        if not known.size:
            return "unknown"
        low, high = np.percentile(known, EXTREMES)
        return f"{low:.1f} to {high:.1f}{' m' if self.space.scale == 'metric' else ''}"

    def describe_at(self, value: Value, place: tuple[float, float]) -> str:
        depth = float(cell(value["depth"], place))
        unit = " m" if self.space.scale == "metric" else ""
        return f"{depth:.2f}{unit}" if depth else ""

    def distance(self, one: Value, other: Value) -> float:
        """The share of the pixels that both know where one is more than 1.25 times the other; relative depths after the
        scale and shift that bring them closest.
        """
        left, right = on_one_raster(one["depth"].astype(np.float64), other["depth"].astype(np.float64), 0.0)
        known = left > 0, right > 0
        if self.space.scale == "relative":
            right = _brought_near(right, left, known[0] & known[1])
        ratio = np.maximum(left, 1e-6) / np.maximum(right, 1e-6)
        return share_apart(np.maximum(ratio, 1 / ratio) > 1.25, *known)

    def count(self, row: Row, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        known = np.array([round((1 - row["unknown"]) * row["h"] * row["w"])], dtype=np.float64)
        return known, known


def _brought_near(
    depth: NDArray[np.float64], target: NDArray[np.float64], known: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """A relative depth under the scale and shift that bring it closest to another, in least squares."""
    design = np.stack([depth[known], np.ones(int(known.sum()))], axis=1)
    scale, shift = np.linalg.lstsq(design, target[known], rcond=None)[0]
    return np.asarray(scale * depth + shift)
