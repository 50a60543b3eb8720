"""Linear classifier on a frozen backbone, as an objective for gradient training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.label_subsets import TASK
from pipeline.data.loader import Batch
from pipeline.models.backbone import Backbone
from pipeline.training.objective import Objective


class FrozenLinear(Objective):
    """Train a linear layer; the backbone, batch norm statistics included, stays as it is."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.linear = nn.Linear(backbone.width, classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def train(self, mode: bool = True) -> FrozenLinear:
        super().train(mode)
        self.backbone.eval()
        return self

    def amounts(self, batch: Batch) -> dict[str, float]:
        return {TASK: len(batch.images)}

    def forward(self, batch: Batch, shares: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            features = self.backbone(batch.images.float() / 255)
        target = batch.targets[TASK]["target"]["probs"]
        loss = shares[TASK] * F.cross_entropy(self.linear(features).float(), target)
        return loss, {TASK: loss.detach()}
