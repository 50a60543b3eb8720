"""Features: learn the vector that a published backbone makes of an image (feature distillation)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.augment import ValidSizes
from pipeline.models.backbone import Backbone
from pipeline.models.readout import Readout
from pipeline.models.timm_models import Statistics
from pipeline.stores.labels import Value
from tasks.task import FeatureInfo, Features, Metric, Prediction, Target, Task, masked_mean, stack


class PrincipalComponents(nn.Module):
    """The principal components of vectors: (B, D) -> (B, K), largest variance first.

    Centered, and divided by one number, so that the variances of all D components have the mean 1.
    """

    center: Tensor
    axes: Tensor

    share: Tensor

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("axes", torch.zeros(count, width))
        self.register_buffer("share", torch.zeros(()))
        """Of the variance of the vectors that it was fitted to: what the K components have."""

    @classmethod
    def fit(cls, vectors: Tensor, count: int) -> Self:
        """Return the first `count` components of vectors (N, D). Raises ValueError if all vectors are the same."""
        exact = vectors.double()
        center = exact.mean(dim=0)
        variances, axes = torch.linalg.eigh((exact - center).T @ (exact - center) / len(exact))
        variances, axes = variances.flip(0).clamp(min=0), axes.flip(1).T
        if not variances.any():
            raise ValueError("all vectors are the same")
        axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()  # eigenvectors have no direction
        fitted = cls(vectors.shape[1], count)
        fitted.center.copy_(center)
        fitted.axes.copy_(axes[:count] / variances.mean().sqrt())
        fitted.share.copy_(variances[:count].sum() / variances.sum())
        return fitted

    def forward(self, vectors: Tensor) -> Tensor:
        return (vectors.float() - self.center) @ self.axes.T


class FeatureNetwork(nn.Module):
    """A backbone and the principal components of its vectors: uint8 images (B, 3, S, S) -> {head: (B, K)}."""

    def __init__(self, name: str, head: str, image_size: int, statistics: Statistics, count: int) -> None:
        super().__init__()
        self.head = head
        self.backbone = Backbone(name, image_size, statistics)
        self.components = PrincipalComponents(self.backbone.width, count)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.forward_with_vector(images)[0]

    def forward_with_vector(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the components, and the vectors (B, D) that they are of."""
        vectors = self.vector(images)
        with torch.autocast(vectors.device.type, enabled=False):
            return {self.head: self.components(vectors)}, vectors

    def vector(self, images: Tensor) -> Tensor:
        """Return the backbone's vectors (B, D)."""
        vectors: Tensor = self.backbone(images)
        return vectors

    def readout(self, images: Tensor) -> Readout:
        """Return the backbone's vectors and maps."""
        return self.backbone.readout(images)


class Adaptor(nn.Module):
    """Two layers from the backbone's vector to the teacher's, as in AM-RADIO (Ranzinger et al., CVPR 2024)."""

    def __init__(self, info: FeatureInfo, outputs: int) -> None:
        super().__init__()
        width = info.vector_width
        self.layers = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, features: Features) -> Tensor:
        vectors: Tensor = self.layers(features.vector).float()
        return vectors


class Similarity(Metric):
    """`cosine`, the mean cosine between predicted and true vectors, and `r2`, the explained share of their variance.

    The mean of all true vectors is 0, up to the images that they are of.
    """

    def __init__(self) -> None:
        self._cosine, self._error, self._square, self._count = 0.0, 0.0, 0.0, 0

    def update(self, predicted: Value, true: Value) -> None:
        guess, truth = (value["vector"].astype(np.float64) for value in (predicted, true))
        if truth.any():
            lengths = np.linalg.norm(guess) * np.linalg.norm(truth)
            self._cosine += float(guess @ truth / lengths) if lengths else 0.0
            self._error += float(((guess - truth) ** 2).sum())
            self._square += float((truth**2).sum())
            self._count += 1

    def compute(self) -> dict[str, float]:
        if not self._count:
            return {}
        return {"cosine": float(self._cosine / self._count), "r2": float(1 - self._error / self._square)}


class TaskModel(Task):
    """Learn the K principal components of a teacher's vectors; raw output: components (B, K)."""

    reads = "vector"
    better = {"cosine": "higher", "r2": "higher"}  # noqa: RUF012 - a constant

    def head(self, info: FeatureInfo) -> nn.Module:
        return Adaptor(info, len(self.space.classes))

    def collate(self, values: Sequence[Value], valid: ValidSizes = None) -> Target:
        return {"vector": stack(values, "vector")}

    def loss(self, output: Tensor, target: Target) -> Tensor:
        """Return the mean over known labels of (1 - cosine) / 2 + (mean smooth L1 distance of spread components) / 2.

        The sum is UNIC's (Sariyildiz et al., ECCV 2024). Centered, divided by one number and spread, all coordinates
        have the variance 1, so that no teacher outweighs others, and distances are its own: PHI-S (Ranzinger et al.,
        ICLR 2025). Of the sum only the smooth L1 distance depends on the axes.
        """
        truth = target["vector"]
        angles = 1 - F.cosine_similarity(output, truth)
        distances = F.smooth_l1_loss(spread(output), spread(truth), reduction="none").mean(dim=1)
        return masked_mean((angles + distances) / 2, self.known(target))

    def live_target(self, output: Tensor) -> Target:
        return {"vector": output}

    def known(self, target: Target) -> Tensor:
        known: Tensor = target["vector"].any(dim=1)
        return known

    def predict(self, output: Tensor, valid: ValidSizes = None) -> Prediction:
        return {"vector": output}

    def metrics(self) -> Similarity:
        return Similarity()

    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return the mean vector."""
        vectors = np.stack([value["vector"] for value in values])
        return {"vector": vectors.mean(axis=0, dtype=np.float64).astype(np.float32)}


def spread(components: Tensor) -> Tensor:
    """Rotate principal components (B, K) so that all coordinates have the same variance, the mean of theirs.

    -> (B, N), N the next power of two: the components, with zeros, times Sylvester's Hadamard matrix, all of whose
    entries have the same size. Its rows are orthogonal: distances grow by the factor sqrt(N / K), and angles stay. Each
    power of two has such a matrix; K itself may have none.
    """
    count = components.shape[1]
    size = 1 << (count - 1).bit_length()
    rotated = F.pad(components, (0, size - count))
    for half in (1 << power for power in range(size.bit_length() - 1)):
        first, second = rotated.unflatten(1, (-1, 2, half)).unbind(dim=2)
        rotated = torch.stack([first + second, first - second], dim=2).flatten(1)
    return rotated / math.sqrt(count)
