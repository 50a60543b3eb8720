"""Linear layers on a frozen backbone: a classifier, as an objective for gradient training, and a layer on maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tasks
from ingest.true_labels import CLASSIFICATION
from pipeline.data.loader import Batch, to_float
from pipeline.errors import ConfigError
from pipeline.models.backbone import Backbone
from pipeline.training.objective import Objective
from tasks.task import DenseHead, FeatureInfo, Task


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
        return {CLASSIFICATION: len(batch.images)}

    def forward(self, batch: Batch, shares: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            features = self.backbone(to_float(batch.images))
        target = batch.targets[CLASSIFICATION]["target"]["probs"]
        loss = shares[CLASSIFICATION] * F.cross_entropy(self.linear(features).float(), target)
        return loss, {CLASSIFICATION: loss.detach()}


class DenseLinear(nn.Module):
    """A linear function of maps, cell by cell: a list of (B, C, h, w) -> raw output (B, K, S/4, S/4) of a dense task.

    Every map is standardised by the mean and deviation of each channel over `train`, goes through a convolution of 1x1,
    and is upsampled bilinearly; the results are summed. Raises ConfigError if the task is not dense.
    """

    def __init__(self, task: Task, train: Sequence[Tensor], size: int) -> None:
        super().__init__()
        head = task.head(FeatureInfo(1, 1, size))
        if not isinstance(head, DenseHead):
            raise ConfigError(f"task {task.space.task!r} has no dense head, which a linear layer on maps stands for.")
        self.side = tasks.label(task.space).target_side(size)
        self.layers = nn.ModuleList(nn.Conv2d(level.shape[1], head.outputs, 1) for level in train)
        for parameter in self.layers.parameters():
            nn.init.zeros_(parameter)
        for number, level in enumerate(train):
            for name, values in zip(("mean", "std"), channel_statistics(level), strict=True):
                self.register_buffer(f"{name}{number}", values.view(1, -1, 1, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the raw output for maps, finest first."""
        outputs = []
        for number, (layer, level) in enumerate(zip(self.layers, maps, strict=True)):
            standard = (level - self.get_buffer(f"mean{number}")) / self.get_buffer(f"std{number}")
            outputs.append(F.interpolate(layer(standard), size=(self.side, self.side), mode="bilinear"))
        return torch.stack(outputs).sum(dim=0)


def channel_statistics(level: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of each channel of maps (N, C, h, w), (C,) float32 each."""
    parts, count = level.split(64), level.numel() // level.shape[1]  # maps may be float16, in which sums overflow
    mean = torch.stack([part.float().sum((0, 2, 3)) for part in parts]).sum(0) / count
    centered = [(part.float() - mean.view(1, -1, 1, 1)).square().sum((0, 2, 3)) for part in parts]
    deviation = (torch.stack(centered).sum(0) / count).sqrt()
    return mean, deviation.clamp_min(1e-6).maximum(1e-3 * mean.abs())  # a channel that hardly varies stays small
