"""COCO average precision of boxes, or of other shapes of objects, computed by faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from pipeline.stores.labels import Value
from tasks.instances import Overlaps, box_overlaps
from tasks.task import ClassScore, Metric

Annotation = dict[str, Any]


class Shapes(NamedTuple):
    """The part of objects that is compared, by its intersection over union or, of keypoints, by their similarity."""

    name: Literal["bbox", "segm", "keypoints"]
    """COCO's name for them."""
    annotations: Callable[[Value, NDArray[np.int32]], list[Annotation]]
    """Return the shape of each object of a label as COCO's JSON has it, in an image of `size` = (width, height).

    An object of 0 `num_keypoints` is ignored, and so is what is found there."""
    overlaps: Overlaps
    sigmas: tuple[float, ...] | None = None
    """Of keypoints: how far off each may be."""


class AveragePrecision(Metric):
    """AP averaged over IoU 0.50 to 0.95 (`ap`) and AP at IoU 0.50 (`ap50`), in [0, 1], over the classes in the truth.

    Predictions are rescaled to the `size` of the truth. Both are means over classes of what they are for each.
    """

    def __init__(self, classes: int, shapes: Shapes) -> None:
        self._classes, self._shapes = classes, shapes
        self._images: list[dict[str, int]] = []
        self._truth: list[Annotation] = []
        self._predicted: list[Annotation] = []

    def update(self, predicted: Value, true: Value) -> None:
        size = true["size"]
        image_id = len(self._images) + 1
        self._images.append({"id": image_id, "width": int(size[0]), "height": int(size[1])})
        for shape, class_id in zip(self._shapes.annotations(true, size), true["classes"], strict=True):
            about = {"image_id": image_id, "category_id": int(class_id) + 1}
            self._truth.append({**about, **shape, "id": len(self._truth) + 1, "iscrowd": 0})
        columns = self._shapes.annotations(predicted, size), predicted["classes"], predicted["scores"]
        for shape, class_id, score in zip(*columns, strict=True):
            about = {"image_id": image_id, "category_id": int(class_id) + 1}
            self._predicted.append({**about, **shape, "score": float(score)})

    def compute(self) -> dict[str, float]:
        scores = [score.values for score in self.compute_by_class().values()]
        return {name: float(np.mean([values[name] for values in scores])) for name in scores[0]} if scores else {}

    def compute_by_class(self) -> dict[int, ClassScore]:
        """Return the scores of the classes in the truth, with their objects as support."""
        counted = [each["category_id"] - 1 for each in self._truth if each.get("num_keypoints") != 0]
        support = np.bincount(np.array(counted, dtype=np.int64), minlength=self._classes)
        present = [int(index) for index in np.flatnonzero(support)]
        precision = self._precision() if present and self._predicted else np.zeros((1, 1, self._classes))
        overall, loose = precision.mean(axis=(0, 1)), precision[0].mean(axis=0)
        return {
            index: ClassScore(int(support[index]), {"ap": float(overall[index]), "ap50": float(loose[index])})
            for index in present
        }

    def _precision(self) -> NDArray[np.float64]:
        """Return the precision by IoU from 0.50 on, recall and class, for objects of all sizes; -1 without truth."""
        categories = [{"id": number + 1, "name": str(number)} for number in range(self._classes)]
        found = [annotation.copy() for annotation in self._predicted]  # `loadRes` adds to them
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            truth = COCO({"images": self._images, "annotations": self._truth, "categories": categories})
            evaluation = COCOeval_faster(
                truth, truth.loadRes(found), self._shapes.name, kpt_oks_sigmas=self._shapes.sigmas
            )
            evaluation.params.catIds = [category["id"] for category in categories]  # of keypoints it has fewer
            evaluation.evaluate()
            evaluation.accumulate()
        precision: NDArray[np.float64] = evaluation.eval["precision"][:, :, :, 0, -1]
        return precision


def box_annotations(value: Value, size: NDArray[np.int32]) -> list[Annotation]:
    """Return the boxes of a label as COCO's JSON has them, in an image of `size` = (width, height)."""
    boxes = value["boxes"].astype(np.float64) * np.tile(size / value["size"], 2)
    return [_box_annotation(*map(float, box)) for box in boxes]


def _box_annotation(x0: float, y0: float, x1: float, y1: float) -> Annotation:
    width, height = x1 - x0, y1 - y0
    return {"bbox": [x0, y0, width, height], "area": width * height}


BOXES = Shapes("bbox", box_annotations, box_overlaps)
