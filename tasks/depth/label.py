"""Depth labels on disk and drawn: metres, or relative inverse depth, per pixel."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.stores import codecs
from pipeline.stores.labels import Row, Value
from pipeline.stores.rasters import cell_at, mean_where_known, on_finer_raster
from tasks.drawing import caption, colormap, enlarge
from tasks.raster import SIZE_COLUMNS, RasterLabel

PERCENTILES = (1, 99)
"""The range of known depths that drawing and text cover."""


class TaskLabel(RasterLabel):
    """`depth` (h, w) float32, a raster over the image; 0 = unknown.

    Scale "metric": metres along the optical axis, not along the ray. Scale "relative": inverse depth, larger is nearer,
    up to a positive scale and a shift per image. Stored as float16: off by at most 2^-11 of the value (0.05 %), for
    values from 6.1e-5 to 65,504. Depth has no score, so a threshold drops nothing, as in MuST.
    """

    task = "depth"
    unknown = {"depth": 0.0}  # noqa: RUF012 - a constant
    legend = "violet is near, yellow far; the range stands below each picture"

    def columns(self) -> pa.Schema:
        unit = "metres" if self.space.scale == "metric" else "inverse depth, arbitrary scale and shift"
        return pa.schema(
            [
                pa.field("depth", pa.binary(), metadata={"about": f"float16 (h, w), {unit}, 0 = unknown, zstd"}),
                *SIZE_COLUMNS,
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

    def draw(self, image: Image, value: Value) -> Image:
        drawn = self.draw_plain(image, value)
        if (value["depth"] > 0).any():
            caption(drawn, self.describe(value), (0, drawn.height))
        return drawn

    def draw_plain(self, image: Image, value: Value, dashed: bool = False) -> Image:
        depth = value["depth"]
        known = depth > 0
        if not known.any():
            return image.copy()
        low, high = np.percentile(depth[known], PERCENTILES)
        colors = colormap((depth - low) / max(high - low, 1e-6)) * known[..., None].astype(np.uint8)
        return enlarge(colors, image.size)

    def describe(self, value: Value) -> str:
        known = value["depth"][value["depth"] > 0]
        if not known.size:
            return "unknown"
        low, high = np.percentile(known, PERCENTILES)
        return f"{low:.1f} to {high:.1f}{' m' if self.space.scale == 'metric' else ''}"

    def describe_at(self, value: Value, point: tuple[float, float]) -> str:
        depth = float(cell_at(value["depth"], point))
        unit = " m" if self.space.scale == "metric" else ""
        return f"{depth:.2f}{unit}" if depth else ""

    def distance(self, one: Value, other: Value) -> float:
        """Return the share of pixels, known to both, where one depth is more than 1.25 times the other.

        Of relative depths, `other` is first aligned to `one` by the least-squares scale and shift.
        """
        left, right = on_finer_raster(one["depth"].astype(np.float64), other["depth"].astype(np.float64), 0.0)
        known = left > 0, right > 0
        if self.space.scale == "relative":
            right = align(right, left, known[0] & known[1])
        ratio = np.maximum(left, 1e-6) / np.maximum(right, 1e-6)
        return mean_where_known(np.maximum(ratio, 1 / ratio) > 1.25, *known)


def align(depth: NDArray[np.float64], target: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return `depth` under the scale and shift that bring it closest to `target`, in least squares over `known`."""
    design = np.stack([depth[known], np.ones(int(known.sum()))], axis=1)
    scale, shift = np.linalg.lstsq(design, target[known], rcond=None)[0]
    return np.asarray(scale * depth + shift)
