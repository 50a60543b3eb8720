"""Classification: a linear layer on the backbone's vector, soft cross entropy, accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.augment import ValidSizes
from pipeline.stores.labels import Value
from tasks.calibration import ClassifiedExamples
from tasks.task import FeatureInfo, LinearHead, Prediction, Target, Task, masked_mean, stack


class Accuracy:
    """Top-1 accuracy, in [0, 1], over images with a known label; of a soft one, the most probable class counts."""

    def __init__(self) -> None:
        self._correct = self._count = 0

    def update(self, predicted: Value, true: Value) -> None:
        if true["probs"].any():
            self._correct += int(predicted["probs"].argmax() == true["probs"].argmax())
            self._count += 1

    def compute(self) -> dict[str, float]:
        return {"accuracy": self._correct / self._count} if self._count else {}


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
        return masked_mean(losses, probs.any(dim=1))

    def amount(self, target: Target) -> float:
        return float(target["probs"].any(dim=1).sum())

    def predict(self, output: Tensor, valid: ValidSizes = None) -> Prediction:
        return {"probs": output.softmax(dim=1)}

    def metrics(self) -> Accuracy:
        return Accuracy()

    def scored_examples(self, predicted: Value, true: Value) -> ClassifiedExamples | None:
        if not true["probs"].any():
            return None
        return ClassifiedExamples(predicted["probs"][None], np.array([true["probs"].argmax()]))

    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return the class frequencies: the prediction is always the most frequent class."""
        total = np.sum([value["probs"].astype(np.float64) for value in values], axis=0)
        return {"probs": (total / total.sum()).astype(np.float32)}
