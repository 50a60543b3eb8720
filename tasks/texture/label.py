"""Texture labels on disk and drawn: the responses of a fixed filter bank per pixel, a target without annotation."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.stores import codecs
from pipeline.stores.labels import Row, Value
from pipeline.stores.rasters import cell_at, mean_where_known, on_finer_raster
from tasks.drawing import enlarge, palette
from tasks.raster import SIZE_COLUMNS, RasterLabel

UNKNOWN = -1.0
"""The response of unknown cells."""


class TaskLabel(RasterLabel):
    """`responses` (h, w, C) float32 in [0, 1], a raster over the image; -1 = unknown.

    The classes of the label space name the C filters; `<scale>@<degrees>` those with a direction. Stored in 255 levels:
    off by at most 1/508. Responses have no score, so a threshold drops nothing. Mirroring the image swaps the filters
    of each mirrored pair (`mirror`).
    """

    task = "texture"
    unknown = {"responses": UNKNOWN}  # noqa: RUF012 - a constant
    legend = "the hue shows the strongest filter, the brightness its response"

    def columns(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field("responses", pa.binary(), metadata={"about": "uint8 (h, w, C), 254 = 1, 255 = unknown, zstd"}),
                *SIZE_COLUMNS,
                pa.field("mean", pa.list_(pa.float32()), metadata={"about": "mean response per filter, where known"}),
            ]
        )

    def encode(self, value: Value) -> Row:
        responses = value["responses"]
        known = responses >= 0
        stored = np.where(known, np.rint(np.clip(responses, 0, 1) * 254), 255).astype(np.uint8)
        mean = responses.sum(axis=(0, 1), where=known) / np.maximum(known.sum(axis=(0, 1)), 1)
        return {
            "confidence": 1.0 if known.any() else 0.0,
            "responses": codecs.pack(stored),
            "h": responses.shape[0],
            "w": responses.shape[1],
            "mean": mean.tolist(),
        }

    def decode(self, row: Row, threshold: float = 0.0) -> Value:
        stored = codecs.unpack(row["responses"], np.uint8, (row["h"], row["w"], len(self.space.classes)))
        return {"responses": np.where(stored == 255, UNKNOWN, stored.astype(np.float32) / 254).astype(np.float32)}

    def flip(self, value: Value) -> Value:
        return {"responses": value["responses"][:, ::-1, mirror(self.space.classes)]}

    def draw(self, image: Image, value: Value) -> Image:
        responses = np.maximum(value["responses"], 0)
        hues = palette(responses.shape[-1])[responses.argmax(axis=-1)]
        return enlarge(np.rint(hues * responses.max(axis=-1, keepdims=True)).astype(np.uint8), image.size)

    def describe_at(self, value: Value, point: tuple[float, float]) -> str:
        responses = cell_at(value["responses"], point)
        strongest = int(responses.argmax())
        return f"{self.space.classes[strongest]} {responses[strongest]:.2f}" if responses[strongest] > 0 else ""

    def distance(self, one: Value, other: Value) -> float:
        """Return the mean absolute difference of the responses, over the cells known to both."""
        left, right = on_finer_raster(one["responses"], other["responses"], UNKNOWN)
        return mean_where_known(np.abs(left - right), left >= 0, right >= 0)

    def count(self, row: Row, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        cells = np.full(len(self.space.classes), row["h"] * row["w"], dtype=np.float64)
        return cells, cells


def mirror(filters: tuple[str, ...]) -> list[int]:
    """Return for each filter the index of its mirror image: angle a becomes 180 - a.

    Names `<scale>@<degrees>` hold rounded numbers, so the nearest angle of the same scale is taken. A filter whose name
    has no angle is its own mirror image.
    """
    scales = [name.partition("@")[0] for name in filters]
    angles = np.array([float(name.partition("@")[2] or 0) for name in filters])
    mirrored = []
    for scale, angle in zip(scales, angles, strict=True):
        away = np.abs((angles - (180 - angle) + 90) % 180 - 90)
        away[[other != scale for other in scales]] = np.inf
        mirrored.append(int(away.argmin()))
    return mirrored
