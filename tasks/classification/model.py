"""Classification: a linear layer on the backbone's vector, soft cross entropy, accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.augment import ValidSizes
from pipeline.data.loader import WEIGHTS
from pipeline.stores.labels import Value
from tasks.calibration import ClassifiedExamples
from tasks.task import ClassScore, FeatureInfo, LinearHead, Metric, Prediction, Target, Task, masked_mean, stack


class Accuracy(Metric):
    """Top-1 accuracy, in [0, 1], over images with a known label; of a soft one, the most probable class counts.

    That of a class, also called its recall, is over the images that show it.
    """

    def __init__(self, classes: int) -> None:
        self._correct, self._count = (np.zeros(classes, dtype=np.int64) for _ in range(2))

    def update(self, predicted: Value, true: Value) -> None:
        if true["probs"].any():
            truth = true["probs"].argmax()
            self._correct[truth] += predicted["probs"].argmax() == truth
            self._count[truth] += 1

    def compute(self) -> dict[str, float]:
        return {"accuracy": float(self._correct.sum() / self._count.sum())} if self._count.any() else {}

    def compute_by_class(self) -> dict[int, ClassScore]:
        return {
            int(index): ClassScore(count := int(self._count[index]), {"accuracy": int(self._correct[index]) / count})
            for index in np.flatnonzero(self._count)
        }


class TaskModel(Task):
    """Learn the distribution over K classes; raw output: logits (B, K). The initial prediction is near uniform."""

    reads = "vector"
    better = {"accuracy": "higher"}  # noqa: RUF012 - a constant

    def head(self, info: FeatureInfo) -> nn.Module:
        return LinearHead(info, len(self.space.classes))

    def collate(self, values: Sequence[Value], valid: ValidSizes = None) -> Target:
        return {"probs": stack(values, "probs")}

    def loss(self, output: Tensor, target: Target) -> Tensor:
        """Return the mean over known labels of the cross entropy with soft targets, -sum_k p_k log q_k in nats.

        As MuST learns from soft pseudo labels (Ghiasi et al., ICCV 2021).
        """
        probs = target["probs"]
        smooth = torch.lerp(probs, torch.full_like(probs, 1 / probs.shape[1]), self.label_smoothing)
        losses = -(smooth * output.log_softmax(dim=1)).sum(dim=1)
        return masked_mean(losses, self.known(target), target.get(WEIGHTS))

    def known(self, target: Target) -> Tensor:
        known: Tensor = target["probs"].any(dim=1)
        return known

    def predict(self, output: Tensor, valid: ValidSizes = None) -> Prediction:
        return {"probs": output.softmax(dim=1)}

    def metrics(self) -> Accuracy:
        return Accuracy(len(self.space.classes))

    def scored_examples(self, predicted: Value, true: Value) -> ClassifiedExamples | None:
        if not true["probs"].any():
            return None
        return ClassifiedExamples(predicted["probs"][None], np.array([true["probs"].argmax()]))

    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return the class frequencies: the prediction is always the most frequent class."""
        total = np.sum([value["probs"].astype(np.float64) for value in values], axis=0)
        return {"probs": (total / total.sum()).astype(np.float32)}
