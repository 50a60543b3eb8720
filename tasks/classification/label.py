"""Classification labels on disk and drawn: a probability distribution over the classes of one image."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.stores import codecs
from pipeline.stores.labels import PROBABILITY, ClassAmounts, Label, Row, Value
from pipeline.stores.rasters import Box
from tasks.drawing import caption


class TaskLabel(Label):
    """`probs` (K,) float32, summing to 1: a teacher's soft distribution, or one-hot for a true label; all 0 = unknown.

    Stored as float16 and normalized when read: each probability is off by at most 2^-11 of itself plus 2^-24, before
    normalizing. A threshold makes the whole label unknown if the largest calibrated probability is below it.
    """

    task = "classification"
    amount_columns = ("top", "probability")
    has_scores = True
    unit = "images"

    def columns(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field("probs", pa.binary(), metadata={"about": "float16 (K,), zstd"}),
                pa.field("top", pa.int32(), metadata={"about": "id of the most probable class"}),
                pa.field("top_class", pa.string(), metadata={"about": "its name"}),
                pa.field("entropy", pa.float32(), metadata={"about": "of the distribution, in nats"}),
                PROBABILITY,
            ]
        )

    def encode(self, value: Value) -> Row:
        probs = value["probs"].astype(np.float64)
        top = int(probs.argmax())
        entropy = -float((probs * np.log(np.maximum(probs, 1e-12))).sum())
        return {
            "confidence": float(probs[top]),
            "probs": codecs.pack(probs.astype(np.float16)),
            "top": top,
            "top_class": self.space.classes[top],
            "entropy": entropy + 0.0,
            "probability": float(self.calibrate(probs)[top]),
        }

    def decode(self, row: Row, threshold: float = 0.0) -> Value:
        probs = codecs.unpack(row["probs"], np.float16, (len(self.space.classes),)).astype(np.float32)
        total = probs.sum()
        if not total or not _reaches(row, threshold):
            return {"probs": np.zeros_like(probs)}
        return {"probs": probs / total}

    def class_amounts(self, table: pa.Table) -> ClassAmounts:
        top = table.column("top").to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(~np.isnan(top.astype(np.float64)))
        amounts = table.column("probability").to_numpy(zero_copy_only=False).astype(np.float32)
        return ClassAmounts(rows, top[rows].astype(np.int64), amounts[rows])

    def flip(self, value: Value) -> Value:
        return value

    def crop(self, value: Value, box: Box, size: tuple[int, int]) -> Value:
        return value

    def draw(self, image: Image, value: Value) -> Image:
        drawn = image.copy()
        if value["probs"].any():
            caption(drawn, self.describe(value))
        return drawn

    def describe(self, value: Value) -> str:
        top = int(value["probs"].argmax())
        if not value["probs"][top]:
            return "no class"
        return f"{self.space.classes[top].split(',')[0]} {self.calibrate(value['probs'])[top]:.0%}"

    def describe_at(self, value: Value, point: tuple[float, float]) -> str:
        return self.describe(value)

    def distance(self, one: Value, other: Value) -> float:
        """Return the total variation distance, 1/2 sum_k |p_k - q_k|."""
        if one["probs"].any() != other["probs"].any():
            return 1.0
        return min(1.0, float(np.abs(one["probs"].astype(np.float64) - other["probs"]).sum() / 2))  # 1 + rounding

    def count(self, row: Row, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        self.check_class_ids(np.array([row["top"]]))
        total = np.bincount([row["top"]], minlength=len(self.space.classes)).astype(np.float64)
        return total, total * int(_reaches(row, threshold))


def _reaches(row: Row, threshold: float) -> bool:
    return bool(np.float32(row["probability"]) >= np.float32(threshold))  # float32 as stored, so that 0.7 reaches 0.7
