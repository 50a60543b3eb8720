"""Features: learn the vector that a published backbone makes of an image (feature distillation)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.augment import ValidSizes
from pipeline.data.loader import WEIGHTS
from pipeline.models.readout import ReadoutBackbone
from pipeline.stores.labels import Value
from tasks.components import ComponentNetwork, ComponentSimilarity, component_loss
from tasks.task import FeatureInfo, Features, Prediction, Target, Task, stack


class FeatureNetwork(ComponentNetwork):
    """A backbone and the principal components of its vectors: uint8 images (B, 3, S, S) -> {head: (B, K)}."""

    def __init__(self, backbone: ReadoutBackbone, head: str, count: int) -> None:
        super().__init__(backbone, head, backbone.width, count)

    def forward_with_vector(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the components, and the vectors (B, D) that they are of."""
        vectors = self.vector(images)
        with torch.autocast(vectors.device.type, enabled=False):
            return {self.head: self.components(vectors)}, vectors

    def fitted_vectors(self, images: Tensor) -> Tensor:
        return self.vector(images)[:, None]


class Adaptor(nn.Module):
    """Two layers from the backbone's vector to the teacher's, as in AM-RADIO (Ranzinger et al., CVPR 2024)."""

    def __init__(self, info: FeatureInfo, outputs: int) -> None:
        super().__init__()
        width = info.vector_width
        self.layers = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, features: Features) -> Tensor:
        vectors: Tensor = self.layers(features.vector).float()
        return vectors


class VectorSimilarity(ComponentSimilarity):
    """`cosine` and `r2` over images."""

    def update(self, predicted: Value, true: Value) -> None:
        self.add(*(value["vector"][None].astype(np.float64) for value in (predicted, true)))


class TaskModel(Task):
    """Learn the K principal components of a teacher's vectors; raw output: components (B, K)."""

    reads = "vector"
    better = {"cosine": "higher", "r2": "higher"}  # noqa: RUF012 - a constant

    def head(self, info: FeatureInfo) -> nn.Module:
        return Adaptor(info, len(self.space.classes))

    def collate(self, values: Sequence[Value], valid: ValidSizes = None) -> Target:
        return {"vector": stack(values, "vector")}

    def loss(self, output: Tensor, target: Target) -> Tensor:
        """Return the `component_loss` over known labels."""
        return component_loss(output, target["vector"], self.known(target), target.get(WEIGHTS))

    def live_target(self, output: Tensor, side: int, valid: Tensor | None = None) -> Target:
        """Return the vectors of whole inputs: a teacher's vector is of the padding as well."""
        return {"vector": output}

    def known(self, target: Target) -> Tensor:
        known: Tensor = target["vector"].any(dim=1)
        return known

    def predict(self, output: Tensor, valid: ValidSizes = None) -> Prediction:
        return {"vector": output}

    def metrics(self) -> VectorSimilarity:
        return VectorSimilarity()

    def constant_label(self, values: Iterable[Value]) -> Value:
        """Return the mean vector."""
        vectors = np.stack([value["vector"] for value in values])
        return {"vector": vectors.mean(axis=0, dtype=np.float64).astype(np.float32)}
