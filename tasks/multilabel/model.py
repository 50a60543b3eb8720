"""Multi-label classification: a linear layer on the backbone's vector, binary cross entropy, mAP and AUROC."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn

from pipeline.data.augment import ValidSizes
from pipeline.data.loader import WEIGHTS
from pipeline.stores.labels import PRESENT, Value
from tasks.task import ClassScore, FeatureInfo, LinearHead, Metric, Prediction, Target, Task, masked_mean, stack


class RankingScores(Metric):
    """Mean over classes of average precision (`map`) and of the area under the ROC curve (`auroc`), in [0, 1].

    Average precision is the sum of (R_n - R_{n-1}) P_n over all scores as thresholds, without interpolation, as is
    usual for COCO's and PASCAL VOC's classes; AUROC is what CheXpert is measured by (Irvin et al., AAAI 2019). Unknown
    classes of an image are left out, and classes without a known positive and a known negative image: neither number
    is defined if none is left. Of a soft truth, probabilities of 0.5 or more are positive.
    """

    def __init__(self) -> None:
        self._predicted: list[np.ndarray[tuple[int], np.dtype[np.float32]]] = []
        self._true: list[np.ndarray[tuple[int], np.dtype[np.float32]]] = []

    def update(self, predicted: Value, true: Value) -> None:
        self._predicted.append(predicted["probs"])
        self._true.append(true["probs"])

    def compute(self) -> dict[str, float]:
        scores = [score.values for score in self.compute_by_class().values()]
        return {name: float(np.mean([values[name] for values in scores])) for name in scores[0]} if scores else {}

    def compute_by_class(self) -> dict[int, ClassScore]:
        """Return the scores of the classes that have any, with their positive images as support."""
        if not self._true:
            return {}
        predicted, true = np.stack(self._predicted, axis=1), np.stack(self._true, axis=1)
        found: dict[int, ClassScore] = {}
        for index, (scores, truth) in enumerate(zip(predicted, true, strict=True)):
            known = ~np.isnan(truth)
            positive, score = truth[known] >= PRESENT, scores[known].astype(np.float64)
            if positive.any() and not positive.all():
                precision, area = average_precision_score(positive, score), roc_auc_score(positive, score)
                found[index] = ClassScore(int(positive.sum()), {"map": float(precision), "auroc": float(area)})
        return found


class TaskModel(Task):
    """Learn the probability of each of K classes; raw output: logits (B, K). The initial prediction is near 0.5."""

    reads = "vector"
    better = {"map": "higher", "auroc": "higher"}  # noqa: RUF012 - a constant

    def head(self, info: FeatureInfo) -> nn.Module:
        return LinearHead(info, len(self.space.classes))

    def collate(self, values: Sequence[Value], valid: ValidSizes = None) -> Target:
        return {"probs": stack(values, "probs")}

    def loss(self, output: Tensor, target: Target) -> Tensor:
        """Return the mean over known entries (image, class) of -p log q - (1 - p) log(1 - q) in nats, q = sigmoid.

        `label_smoothing` s moves p to (1 - s) p + s / 2, evenly over the class's two outcomes.
        """
        probs = target["probs"].nan_to_num()
        smooth = torch.lerp(probs, torch.full_like(probs, 0.5), self.label_smoothing)
        losses = F.binary_cross_entropy_with_logits(output, smooth, reduction="none")
        return masked_mean(losses, self.known(target), target.get(WEIGHTS))

    def known(self, target: Target) -> Tensor:
        known: Tensor = ~target["probs"].isnan()
        return known

    def predict(self, output: Tensor, valid: ValidSizes = None) -> Prediction:
        return {"probs": output.sigmoid()}

    def metrics(self) -> RankingScores:
        return RankingScores()

    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return each class's frequency among the images where it is known; 0 if it is known in none."""
        total, known = np.zeros(len(self.space.classes)), np.zeros(len(self.space.classes))
        for value in values:
            total += np.nan_to_num(value["probs"])
            known += ~np.isnan(value["probs"])
        return {"probs": (total / np.maximum(known, 1)).astype(np.float32)}
