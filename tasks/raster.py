"""Base class of labels that are rasters over the image: depth, normals, regression, segmentation, texture."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.stores.labels import Label, Layer, Row, Value
from pipeline.stores.rasters import Box, resample_nearest

SIZE_COLUMNS = (pa.field("h", pa.int32()), pa.field("w", pa.int32()))
"""The columns with the height and width of the rasters in cells."""


class RasterLabel(Label):
    """Labels whose arrays are rasters (h, w, ...) over the image; mirroring and zooming only move their entries."""

    layer: ClassVar[Layer] = "map"
    unknown: ClassVar[dict[str, float]]
    """By array, the entry that means unknown."""

    def flip(self, value: Value) -> Value:
        return {name: raster[:, ::-1] for name, raster in value.items()}

    def crop(self, value: Value, box: Box, size: tuple[int, int]) -> Value:
        return {name: resample_nearest(raster, box, size, self.unknown[name]) for name, raster in value.items()}

    def describe(self, value: Value) -> str:
        return ""

    def count(self, row: Row, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Count the known entries by the column `unknown`, the share of the others; a threshold drops none."""
        known = np.array([round((1 - row["unknown"]) * row["h"] * row["w"])], dtype=np.float64)
        return known, known
