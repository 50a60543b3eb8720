"""Features of an image on disk and drawn: what a published backbone makes of it, for another one to learn."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.stores import codecs
from pipeline.stores.labels import Label, Row, Value
from pipeline.stores.rasters import Box, cosines
from tasks.drawing import caption

SHOWN = 3
"""Components that stand in columns and captions."""


class TaskLabel(Label):
    """`vector` (K,) float32: the first K principal components of a teacher's vector, largest variance first; all 0 =
    unknown.

    The classes of the label space number the components. They are centered, and divided by one number, so that their
    variances have the mean 1 over the images that the teacher was fitted on: distances and angles are those of the
    teacher's own vectors. Stored as float16: off by at most 2^-11 of itself plus 2^-24. Features have no score, so a
    threshold drops nothing. Of a part of an image, and mirrored, they stay those of the whole, as a class does; of what
    lies outside of it they are unknown.
    """

    can_be_live = True
    task = "features"
    unit = "images"
    legend = "the first three principal components"

    def columns(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field("vector", pa.binary(), metadata={"about": "float16 (K,), zstd"}),
                pa.field("first", pa.list_(pa.float32()), metadata={"about": "the first three components, or fewer"}),
                pa.field("length", pa.float32(), metadata={"about": "root mean square of the components; 1 is usual"}),
            ]
        )

    def encode(self, value: Value) -> Row:
        largest = np.finfo(np.float16).max
        vector = np.clip(value["vector"], -largest, largest).astype(np.float16)
        return {
            "confidence": 1.0 if vector.any() else 0.0,
            "vector": codecs.pack(vector),
            "first": vector[:SHOWN].astype(np.float32).tolist(),
            "length": float(np.sqrt(np.square(vector.astype(np.float64)).mean())),
        }

    def decode(self, row: Row, threshold: float = 0.0) -> Value:
        stored = codecs.unpack(row["vector"], np.float16, (len(self.space.classes),))
        if not np.isfinite(stored).all():
            raise ValueError("components that are not finite")
        return {"vector": stored.astype(np.float32)}

    def flip(self, value: Value) -> Value:
        return value

    def crop(self, value: Value, box: Box, size: tuple[int, int]) -> Value:
        x0, y0, x1, y1 = box
        is_outside = x1 <= 0 or y1 <= 0 or x0 >= 1 or y0 >= 1
        return {"vector": np.zeros_like(value["vector"])} if is_outside else value

    def draw(self, image: Image, value: Value) -> Image:
        drawn = image.copy()
        if words := self.describe(value):
            caption(drawn, words)
        return drawn

    def describe(self, value: Value) -> str:
        vector = value["vector"]
        return " ".join(f"{component:+.1f}" for component in vector[:SHOWN]) if vector.any() else ""

    def describe_at(self, value: Value, point: tuple[float, float]) -> str:
        return self.describe(value)

    def distance(self, one: Value, other: Value) -> float:
        """Return (1 - cos) / 2 of the angle between the vectors."""
        left, right = one["vector"].astype(np.float64), other["vector"].astype(np.float64)
        if not left.any() or not right.any():
            return float(left.any() != right.any())
        return float(np.clip((1 - cosines(left, right)) / 2, 0, 1))

    def count(self, row: Row, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        held = np.full(len(self.space.classes), float(row["length"] > 0))
        return held, held
