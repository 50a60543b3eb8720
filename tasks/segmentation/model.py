"""Semantic segmentation: cross entropy over known pixels, mIoU and pixel accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.augment import Placement, ValidSizes
from pipeline.data.loader import WEIGHTS
from pipeline.stores import codecs
from pipeline.stores.labels import IGNORE, Value
from tasks.calibration import ScoredExamples
from tasks.task import ClassScore, DenseTask, Metric, Prediction, Target, masked_mean, resample, stack


class IntersectionOverUnion(Metric):
    """mIoU, the mean over classes of intersection over union, and pixel accuracy, in [0, 1].

    Both come from one confusion matrix over all images, of pixels known in truth and prediction. Classes that occur in
    neither are left out of the mean.
    """

    def __init__(self, classes: int) -> None:
        self._confusion = np.zeros((classes, classes), dtype=np.int64)

    def update(self, predicted: Value, true: Value) -> None:
        truth = true["classes"]
        guess = resample(predicted["classes"], truth)
        known = (truth != IGNORE) & (guess != IGNORE)
        count = len(self._confusion)
        pairs = truth[known].astype(np.int64) * count + guess[known]
        self._confusion += np.bincount(pairs, minlength=count * count).reshape(count, count)

    def compute(self) -> dict[str, float]:
        classes, total = self.compute_by_class(), self._confusion.sum()
        if not total:
            return {}
        return {
            "miou": float(np.mean([score.values["miou"] for score in classes.values()])),
            "pixel_accuracy": float(np.trace(self._confusion) / total),
        }

    def compute_by_class(self) -> dict[int, ClassScore]:
        hits, support = np.diag(self._confusion), self._confusion.sum(axis=1)
        union = self._confusion.sum(axis=0) + support - hits
        return {
            int(index): ClassScore(int(support[index]), {"miou": float(hits[index] / union[index])})
            for index in np.flatnonzero(union)
        }


class TaskModel(DenseTask):
    """Learn a class per pixel; raw output: logits (B, K, S/4, S/4)."""

    better = {"miou": "higher", "pixel_accuracy": "higher"}  # noqa: RUF012 - a constant

    @property
    def channels(self) -> int:
        return len(self.space.classes)

    def collate(self, values: Sequence[Value], valid: ValidSizes = None) -> Target:
        return {"classes": stack([{"classes": value["classes"].astype(np.int64)} for value in values], "classes")}

    def loss(self, output: Tensor, target: Target) -> Tensor:
        """Return the mean cross entropy, -log q_y in nats, over known pixels (FCN, Long et al., CVPR 2015)."""
        classes = target["classes"]
        losses = F.cross_entropy(
            output, classes, ignore_index=IGNORE, reduction="none", label_smoothing=self.label_smoothing
        )
        return masked_mean(losses, self.known(target), target.get(WEIGHTS))

    def known(self, target: Target) -> Tensor:
        known: Tensor = target["classes"] != IGNORE
        return known

    def predict(self, output: Tensor, valid: ValidSizes = None) -> Prediction:
        confidence, classes = output.softmax(dim=1).max(dim=1)
        return {"classes": classes, "confidence": confidence}

    def value(self, prediction: Prediction, index: int, placement: Placement) -> Value:
        value = super().value(prediction, index, placement)
        return {**value, "classes": value["classes"].astype(np.uint16)}

    def metrics(self) -> IntersectionOverUnion:
        return IntersectionOverUnion(len(self.space.classes))

    def scored_examples(self, predicted: Value, true: Value) -> ScoredExamples | None:
        """Return the pixels known in truth and prediction, counted by their confidence as it is stored, in levels."""
        truth = true["classes"]
        guess, levels = (resample(predicted[name], truth) for name in ("classes", "confidence"))
        known = (truth != IGNORE) & (guess != IGNORE)
        levels, hits = codecs.share_to_byte(levels[known]), (truth == guess)[known]
        counts, right = np.bincount(levels, minlength=256), np.bincount(levels, hits, 256)
        present = np.flatnonzero(counts)
        if not len(present):
            return None
        scores = codecs.byte_to_share(present.astype(np.uint8))
        return ScoredExamples(scores, right[present] / counts[present], counts[present].astype(np.float64))

    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return the most frequent class, as a raster of one cell, with its share of the known pixels as confidence."""
        counts = np.zeros(len(self.space.classes), dtype=np.int64)
        for value in values:
            known = value["classes"][value["classes"] != IGNORE]
            counts += np.bincount(known, minlength=len(counts))
        share = counts.max() / max(counts.sum(), 1)
        return {
            "classes": np.full((1, 1), counts.argmax(), dtype=np.uint16),
            "confidence": np.full((1, 1), share, dtype=np.float32),
        }
