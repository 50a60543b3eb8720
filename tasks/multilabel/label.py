"""Multi-label classification on disk and drawn: for each class, the probability that the image shows it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.stores import codecs
from pipeline.stores.labels import PRESENT, ClassAmounts, Label, Row, Value
from pipeline.stores.rasters import Box
from tasks.drawing import caption

MAX_NAMED = 5
"""Classes that are named in drawings and descriptions."""


class TaskLabel(Label):
    """`probs` (K,) float32: the probability that each class is in the image, 0 or 1 for a true label; NaN = unknown.

    Stored as float16: each probability is off by at most 2^-11 of itself plus 2^-24. A threshold t makes a class
    unknown whose max(p, 1 - p) is below t, so that it keeps sure absences as well as sure presences; up to 0.5 it
    changes nothing. It is compared in float16.
    """

    task = "multilabel"
    amount_columns = ("classes", "scores")
    partial_columns = ("probs",)
    has_scores = True
    unit = "classes found (of a probability of 0.5 or more)"

    def columns(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field("probs", pa.binary(), metadata={"about": "float16 (K,), NaN = unknown, zstd"}),
                pa.field("classes", pa.list_(pa.int32()), metadata={"about": "ids of the classes with p >= 0.5"}),
                pa.field("names", pa.list_(pa.string()), metadata={"about": "their names"}),
                pa.field("scores", pa.list_(pa.float32()), metadata={"about": "their probabilities"}),
                pa.field("count", pa.int32(), metadata={"about": "classes with p >= 0.5"}),
                pa.field("unknown", pa.float32(), metadata={"about": "share of the classes"}),
            ]
        )

    def encode(self, value: Value) -> Row:
        """Return the row; `confidence` is the mean of max(p, 1 - p) over the known classes, 0 if none is known."""
        probs = value["probs"].astype(np.float16)
        present = _present(probs)
        sure = _sureness(probs.astype(np.float32))
        return {
            "confidence": float(sure.mean()) if len(sure) else 0.0,
            "probs": codecs.pack(probs),
            "classes": present.tolist(),
            "names": [self.space.classes[number] for number in present],
            "scores": probs[present].tolist(),
            "count": len(present),
            "unknown": 1 - len(sure) / len(probs),
        }

    def decode(self, row: Row, threshold: float = 0.0) -> Value:
        stored = codecs.unpack(row["probs"], np.float16, (len(self.space.classes),))
        sure = (stored >= np.float16(threshold)) | (
            stored <= np.float16(1 - threshold)
        )  # max(p, 1 - p) would be rounded, and miss it
        return {"probs": np.where(sure, stored, np.nan).astype(np.float32)}

    def class_amounts(self, table: pa.Table) -> ClassAmounts:
        """Return the classes with a probability of 0.5 or more: those that are said to be in the image."""
        rows, classes = codecs.flatten_lists(table.column("classes"))
        _, scores = codecs.flatten_lists(table.column("scores"))
        return ClassAmounts(rows, classes.astype(np.int64), scores.astype(np.float32))

    def known_classes(self, table: pa.Table) -> NDArray[np.bool_]:
        known = super().known_classes(table) & False
        for probs in table.column("probs").drop_null().to_pylist():
            known |= ~np.isnan(self.decode({"probs": probs})["probs"])
        return known

    def flip(self, value: Value) -> Value:
        return value

    def crop(self, value: Value, box: Box, size: tuple[int, int]) -> Value:
        return value

    def draw(self, image: Image, value: Value) -> Image:
        drawn = image.copy()
        if not np.isnan(value["probs"]).all():
            caption(drawn, self._list(value, "\n"))
        return drawn

    def describe(self, value: Value) -> str:
        unknown = int(np.isnan(value["probs"]).sum())
        if unknown == len(value["probs"]):
            return "all classes unknown"
        return self._list(value, ", ") + (f" ({unknown} of {len(value['probs'])} unknown)" if unknown else "")

    def _list(self, value: Value, separator: str) -> str:
        """Return the most probable of the classes in the image."""
        probs = value["probs"]
        present = _present(probs)
        best = present[np.argsort(-probs[present], kind="stable")]
        named = [f"{self.space.classes[n]} {probs[n]:.0%}" for n in best[:MAX_NAMED]]
        more = [f"{len(best) - MAX_NAMED} more"] if len(best) > MAX_NAMED else []
        return separator.join([*named, *more]) or "none of the classes"

    def describe_at(self, value: Value, point: tuple[float, float]) -> str:
        return "" if np.isnan(value["probs"]).all() else self.describe(value)

    def distance(self, one: Value, other: Value) -> float:
        """Return sum_k |p_k - q_k| / max(1, sum_k max(p_k, q_k)) over the classes k that both know.

        Of true labels it is Jaccard's distance of the two sets of classes. Where they know no class in common: 1 if
        just one of them knows any, else 0.
        """
        p, q = one["probs"].astype(np.float64), other["probs"].astype(np.float64)
        both = ~np.isnan(p) & ~np.isnan(q)
        if not both.any():
            return float(np.isnan(p).all() != np.isnan(q).all())
        return float(np.abs(p[both] - q[both]).sum() / max(1.0, np.maximum(p[both], q[both]).sum()))

    def count(self, row: Row, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Count the classes in the image: absences are many, and that they are kept makes no class more frequent."""
        classes, scores = np.array(row["classes"], np.int64), np.array(row["scores"], np.float16)
        held, kept = np.zeros(len(self.space.classes)), np.zeros(len(self.space.classes))
        held[classes] = 1
        kept[classes] = scores >= np.float16(threshold)
        return held, kept


def _present(probs: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the ids of the classes in the image, in their order; unknown ones are not."""
    return np.flatnonzero(probs >= PRESENT)


def _sureness(probs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return max(p, 1 - p) of the known classes."""
    known = probs[~np.isnan(probs)].astype(np.float64)
    return np.maximum(known, 1 - known)
