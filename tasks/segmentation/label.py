"""Semantic segmentation labels on disk and drawn: a class and a confidence per pixel."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image as Images
from PIL.Image import Image

from pipeline.stores import codecs
from pipeline.stores.labels import IGNORE, PROBABILITY, ClassAmounts, Row, Value
from pipeline.stores.rasters import cell_at, on_finer_raster
from tasks.drawing import contours, enlarge, palette
from tasks.raster import SIZE_COLUMNS, RasterLabel

BACKGROUND = "background"
STRONG, FAINT = 150, 115
"""Of 255, how strongly classes tint an image: alone, and with other labels."""


class TaskLabel(RasterLabel):
    """`classes` (h, w) uint16, ids with 65535 = unknown, and `confidence` (h, w) float32 in [0, 1]: rasters over the
    image.

    Stored: classes without loss, confidence in 256 levels (off by at most 1/510). Pixels less probable than a
    threshold become unknown. Both are compared as levels: a probability equal to the threshold is kept, and so may be
    one that is less than 1/255 below it; at a threshold of 0.5 none below is.
    """

    task = "segmentation"
    unknown = {"classes": IGNORE, "confidence": 0.0}  # noqa: RUF012 - a constant
    layer = "tint"
    amount_columns = ("area",)
    default_threshold = 0.5  # MuST's
    legend = "pixels below the threshold are not colored"

    @property
    def _dtype(self) -> type[np.uint8] | type[np.uint16]:
        return np.uint8 if len(self.space.classes) < 255 else np.uint16

    def columns(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field("classes", pa.binary(), metadata={"about": "uint8 or uint16 (h, w), largest = unknown, zstd"}),
                pa.field("confidences", pa.binary(), metadata={"about": "uint8 (h, w), 255 = certain, zstd"}),
                *SIZE_COLUMNS,
                pa.field("area", pa.list_(pa.float32()), metadata={"about": "share of the image per class"}),
                pa.field("unknown", pa.float32(), metadata={"about": "share of the image that is unknown"}),
                PROBABILITY,
            ]
        )

    def encode(self, value: Value) -> Row:
        classes, confidence = value["classes"], value["confidence"]
        known = classes != IGNORE
        area = np.bincount(classes[known], minlength=len(self.space.classes)) / classes.size
        stored = np.where(known, classes, np.iinfo(self._dtype).max).astype(self._dtype)
        return {
            "confidence": float(confidence[known].mean()) if known.any() else 0.0,
            "classes": codecs.pack(stored),
            "confidences": codecs.pack(codecs.share_to_byte(confidence)),
            "h": classes.shape[0],
            "w": classes.shape[1],
            "area": area.tolist(),
            "unknown": float(1 - known.mean()),
            "probability": float(self.calibrate(confidence)[known].mean()) if known.any() else 0.0,
        }

    def decode(self, row: Row, threshold: float = 0.0) -> Value:
        shape = (row["h"], row["w"])
        stored = codecs.unpack(row["classes"], self._dtype, shape)
        levels = codecs.unpack(row["confidences"], np.uint8, shape)
        unlabelled = stored == np.iinfo(self._dtype).max
        self.check_class_ids(stored[~unlabelled])
        unknown = unlabelled | ~self._reaches(threshold)[levels]
        classes = np.where(unknown, np.uint16(IGNORE), stored.astype(np.uint16))
        return {"classes": classes, "confidence": codecs.byte_to_share(levels)}

    def _reaches(self, threshold: float) -> NDArray[np.bool_]:
        """Return for each level of confidence, (256,), whether its probability reaches the threshold."""
        levels = np.arange(256, dtype=np.uint8)
        probabilities = self.calibrate(codecs.byte_to_share(levels))
        return codecs.share_to_byte(probabilities) >= codecs.share_to_byte(np.array(threshold, np.float32))

    def class_amounts(self, table: pa.Table) -> ClassAmounts:
        rows, area = codecs.flatten_lists(table.column("area"))
        classes = max(1, len(self.space.classes))
        if (np.bincount(rows) % classes).any():
            raise ValueError(f"a row has shares of other than {classes} classes")
        present = np.flatnonzero(area)
        return ClassAmounts(rows[present], present % classes, area[present].astype(np.float32))

    def draw(self, image: Image, value: Value) -> Image:
        return self._tint(image, value, value["classes"] != IGNORE, STRONG)

    def _tint(self, image: Image, value: Value, where: NDArray[np.bool_], strength: int) -> Image:
        mask = enlarge(np.repeat((where * np.uint8(strength))[..., None], 3, axis=2), image.size).convert("L")
        return Images.composite(enlarge(self._colors(value), image.size), image, mask)

    def draw_plain(self, image: Image, value: Value, dashed: bool = False) -> Image:
        """Return a fainter drawing, or with `dashed` the contours of the classes alone; the background stays clear."""
        if not dashed:
            clear = [self.space.classes.index(name) for name in self.clear_classes]
            return self._tint(image, value, ~np.isin(value["classes"], [IGNORE, *clear]), FAINT)
        where = Images.fromarray(contours(value["classes"], image.size))
        return Images.composite(enlarge(self._colors(value), image.size), image, where)

    @property
    def clear_classes(self) -> tuple[str, ...]:
        return tuple(name for name in self.space.classes if name == BACKGROUND)

    def _colors(self, value: Value) -> NDArray[np.uint8]:
        """Return the colors of the classes (h, w, 3); unknown pixels have any."""
        return palette(len(self.space.classes))[np.where(value["classes"] != IGNORE, value["classes"], 0)]

    def describe(self, value: Value) -> str:
        return f"{(value['classes'] != IGNORE).mean():.0%} of the pixels"

    def describe_at(self, value: Value, point: tuple[float, float]) -> str:
        class_id = int(cell_at(value["classes"], point))
        if class_id == IGNORE:
            return ""
        probability = self.calibrate(cell_at(value["confidence"], point))
        return f"{self.space.classes[class_id]} {float(probability):.0%}"

    def distance(self, one: Value, other: Value) -> float:
        """Return the share of pixels with different classes, among those known to at least one."""
        left, right = on_finer_raster(one["classes"], other["classes"], IGNORE)
        known = (left != IGNORE) | (right != IGNORE)
        return float((left != right)[known].mean()) if known.any() else 0.0

    def count(self, row: Row, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rasters = (self.decode(row)["classes"], self.decode(row, threshold)["classes"])
        total, kept = (np.bincount(one[one != IGNORE], minlength=len(self.space.classes)) for one in rasters)
        return total.astype(np.float64), kept.astype(np.float64)
