"""Surface normal labels on disk and drawn: a unit vector in camera axes per pixel."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from PIL.Image import Image

from pipeline.stores import codecs
from pipeline.stores.labels import Row, Value
from pipeline.stores.rasters import cell_at, mean_where_known, on_finer_raster
from tasks.drawing import enlarge
from tasks.raster import SIZE_COLUMNS, RasterLabel


class TaskLabel(RasterLabel):
    """`normals` (h, w, 3) float32, a raster over the image: unit vectors in camera axes (x right, y up, z towards the
    camera), pointing away from the surface; (0, 0, 0) = unknown.

    Stored as three signed bytes: off by at most 0.5 degrees. Normals have no score, so a threshold drops nothing.
    Mirroring the image negates x.
    """

    task = "normals"
    unknown = {"normals": 0.0}  # noqa: RUF012 - a constant
    legend = "red grows to the right, green upwards, blue towards the camera; black is unknown"

    def columns(self) -> pa.Schema:
        about = "int8 (h, w, 3) in 1/127: x right, y up, z towards the camera; 0 0 0 = unknown; zstd"
        return pa.schema(
            [
                pa.field("normals", pa.binary(), metadata={"about": about}),
                *SIZE_COLUMNS,
                pa.field("mean_z", pa.float32(), metadata={"about": "mean of z over known pixels: 1 = facing us"}),
                pa.field("unknown", pa.float32(), metadata={"about": "share of the image that is unknown"}),
            ]
        )

    def encode(self, value: Value) -> Row:
        normals = value["normals"]
        known = normals.any(axis=-1)
        return {
            "confidence": 1.0 if known.any() else 0.0,
            "normals": codecs.pack(codecs.unit_to_bytes(normals)),
            "h": normals.shape[0],
            "w": normals.shape[1],
            "mean_z": float(normals[known][:, 2].mean()) if known.any() else None,
            "unknown": float(1 - known.mean()),
        }

    def decode(self, row: Row, threshold: float = 0.0) -> Value:
        return {"normals": codecs.bytes_to_unit(codecs.unpack(row["normals"], np.int8, (row["h"], row["w"], 3)))}

    def flip(self, value: Value) -> Value:
        return {"normals": value["normals"][:, ::-1] * np.array([-1, 1, 1], dtype=np.float32)}

    def draw(self, image: Image, value: Value) -> Image:
        normals = value["normals"]
        colors = np.rint((normals + 1) * 127.5).astype(np.uint8) * normals.any(axis=-1, keepdims=True)
        return enlarge(colors.astype(np.uint8), image.size)

    def describe_at(self, value: Value, point: tuple[float, float]) -> str:
        x, y, z = (float(part) for part in cell_at(value["normals"], point))
        if not (x or y or z):
            return ""
        angles = np.degrees(np.arctan2([x, y], max(z, 1e-6)))
        across, along = "right" if x >= 0 else "left", "up" if y >= 0 else "down"
        return f"{abs(angles[0]):.0f}° {across}, {abs(angles[1]):.0f}° {along}"

    def distance(self, one: Value, other: Value) -> float:
        """Return the mean angle between the normals, in units of 180 degrees, over the pixels known to both."""
        left, right = on_finer_raster(one["normals"].astype(np.float64), other["normals"].astype(np.float64), 0.0)
        chord = np.linalg.norm(left - right, axis=-1)  # the cosine would lose small angles to rounding
        angle = 2 * np.arcsin(np.clip(chord / 2, 0, 1)) / np.pi
        return mean_where_known(angle, np.asarray(left.any(axis=-1)), np.asarray(right.any(axis=-1)))
