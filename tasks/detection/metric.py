"""COCO average precision, computed by faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from pipeline.stores.labels import Value
from tasks.task import ClassScore, Metric


class AveragePrecision(Metric):
    """AP averaged over IoU 0.50 to 0.95 (`ap`) and AP at IoU 0.50 (`ap50`), in [0, 1], over the classes in the truth.

    Predictions are rescaled to the `size` of the truth. Both are means over classes of what they are for each.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._images: list[dict[str, int]] = []
        self._truth: list[dict[str, Any]] = []
        self._predicted: list[dict[str, Any]] = []

    def update(self, predicted: Value, true: Value) -> None:
        image_id = len(self._images) + 1
        self._images.append({"id": image_id, "width": int(true["size"][0]), "height": int(true["size"][1])})
        for box, class_id in zip(true["boxes"].astype(np.float64), true["classes"], strict=True):
            self._truth.append(
                self._annotation(image_id, box, int(class_id)) | {"id": len(self._truth) + 1, "iscrowd": 0}
            )
        scale = np.tile(true["size"] / predicted["size"], 2)
        boxes = predicted["boxes"].astype(np.float64) * scale
        for box, class_id, score in zip(boxes, predicted["classes"], predicted["scores"], strict=True):
            self._predicted.append(self._annotation(image_id, box, int(class_id)) | {"score": float(score)})

    @staticmethod
    def _annotation(image_id: int, box: np.ndarray[Any, Any], class_id: int) -> dict[str, Any]:
        x0, y0, x1, y1 = (float(edge) for edge in box)
        width, height = x1 - x0, y1 - y0
        return {
            "image_id": image_id,
            "category_id": class_id + 1,
            "bbox": [x0, y0, width, height],
            "area": width * height,
        }

    def compute(self) -> dict[str, float]:
        scores = [score.values for score in self.compute_by_class().values()]
        return {name: float(np.mean([values[name] for values in scores])) for name in scores[0]} if scores else {}

    def compute_by_class(self) -> dict[int, ClassScore]:
        """Return the scores of the classes in the truth, with their boxes as support."""
        support = np.bincount([annotation["category_id"] - 1 for annotation in self._truth], minlength=self._classes)
        present = [int(index) for index in np.flatnonzero(support)]
        precision = self._precision() if present and self._predicted else np.zeros((1, 1, self._classes))
        overall, loose = precision.mean(axis=(0, 1)), precision[0].mean(axis=0)
        return {
            index: ClassScore(int(support[index]), {"ap": float(overall[index]), "ap50": float(loose[index])})
            for index in present
        }

    def _precision(self) -> NDArray[np.float64]:
        """Return the precision by IoU from 0.50 on, recall and class, for boxes of all sizes; -1 without truth."""
        categories = [{"id": number + 1, "name": str(number)} for number in range(self._classes)]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            truth = COCO({"images": self._images, "annotations": self._truth, "categories": categories})
            evaluation = COCOeval_faster(truth, truth.loadRes(self._predicted), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
        precision: NDArray[np.float64] = evaluation.eval["precision"][:, :, :, 0, -1]
        return precision
