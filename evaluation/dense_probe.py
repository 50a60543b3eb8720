"""Probes that read maps: what they are given and return, and how a module on frozen maps is trained and scored."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import tasks
from evaluation.comparison.cost import Cost
from pipeline.data.augment import AugmentParams, Placement, seeded_generator, transform_label
from pipeline.data.stream import split_evenly
from pipeline.recipe.base import FitConfig
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import Value
from pipeline.training.autotune import ComputeConfig
from pipeline.training.device import find_device
from pipeline.training.fit import fit
from pipeline.training.objective import Objective, TrainingJob
from pipeline.training.process_group import ProcessGroup
from tasks.prediction import to_numpy
from tasks.task import Metric, Target, Task

BATCH = 32
"""Images that are scored at once."""


@dataclasses.dataclass(frozen=True)
class LabelledMaps:
    """The maps of N images, and their labels as they are stored."""

    keys: list[str]
    side: int
    """S, the side of the images that the maps are of, pixels."""
    maps: list[Tensor]
    """For each of the backbone's strides, finest first: (N, C, h, w) float16, on the CPU."""
    values: list[Value]
    sizes: list[tuple[int, int]]
    """(width, height) of the images, pixels."""


@dataclasses.dataclass(frozen=True)
class DenseProbeData:
    """Maps of a frozen backbone with labels of one task: fit on `train`, choose settings on `val`.

    A probe that reads maps is a module in `evaluation/probes/` with `READS = "maps"`: it has `VERSION`, `ABOUT`,
    `RANDOM`, the class `LABEL` of the labels that it can learn, and

        def fit(data: DenseProbeData) -> DenseProbeResult:
            head = MyHead(data.channels, data.task)
            return DenseProbeResult(head, {}, train_on_maps(head, data, FitConfig(steps=100)))
    """

    name: str
    """For progress and errors."""
    task: Task
    train: LabelledMaps
    val: LabelledMaps
    strides: Sequence[int]
    channels: Sequence[int]
    width: int
    """Channels of a pyramid, if the probe has one."""
    proposals: int | None
    seed: int
    scratch: Path
    """Folder for checkpoints."""
    runtime: Runtime


class DenseProbeResult(NamedTuple):
    """A module from maps (a list of (B, C, h, w)) to the task's raw output, the chosen settings, and what it cost."""

    module: nn.Module
    settings: Mapping[str, Any]
    cost: Cost


@dataclasses.dataclass(frozen=True)
class _MapBatch:
    keys: list[str]
    maps: list[Tensor]
    target: Target


class _MapStep:
    """The images of a step, to be collated into microbatches."""

    def __init__(self, data: DenseProbeData, values: Sequence[Value], rows: Sequence[int]) -> None:
        self.data, self.values, self.rows = data, values, rows

    @property
    def keys(self) -> list[str]:
        return [self.data.train.keys[row] for row in self.rows]

    def split(self, count: int) -> list[_MapBatch]:
        return [self._collate(self.rows[run]) for run in split_evenly(len(self.rows), count)]

    def _collate(self, rows: Sequence[int]) -> _MapBatch:
        train, target = self.data.train, self.data.task.collate([self.values[row] for row in rows])
        return _MapBatch([train.keys[row] for row in rows], [level[list(rows)] for level in train.maps], target)


class _MapStream:
    """Batches of the training images, which are in memory, in a new random order in each epoch."""

    def __init__(self, data: DenseProbeData, batch: int) -> None:
        train, label = data.train, tasks.label(data.task.space)
        side = label.target_side(train.side)
        self.values = [transform_label(label, value, AugmentParams(), side) for value in train.values]
        self.data, self.batch = data, batch

    def batches(self, start: int) -> Generator[_MapStep]:
        rows = self._rows(start * self.batch)
        while True:
            yield _MapStep(self.data, self.values, list(itertools.islice(rows, self.batch)))

    def _rows(self, start: int) -> Iterator[int]:
        """Yield the row of each position from `start` on in the endless sequence of epochs."""
        epoch, offset = divmod(start, len(self.values))
        for number in itertools.count(epoch):
            order = seeded_generator(self.data.seed, number).permutation(len(self.values))
            yield from order[offset if number == epoch else 0 :].tolist()


class _MapObjective(Objective):
    """The loss of a task on the output of a module that reads maps."""

    def __init__(self, module: nn.Module, task: Task) -> None:
        super().__init__()
        self.module, self.task = module, task

    def amounts(self, batch: _MapBatch) -> dict[str, float]:
        return {"labels": float(self.task.known(batch.target).sum())}

    def forward(self, batch: _MapBatch, shares: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = shares["labels"] * self.task.loss(self.module([level.float() for level in batch.maps]), batch.target)
        return loss, {}


def train_on_maps(module: nn.Module, data: DenseProbeData, settings: FitConfig) -> Cost:
    """Train a module on the maps and labels of `data.train`, whole images in a random order; leave it on the device."""
    steps, device = settings.total_steps(len(data.train.keys)), find_device(data.runtime.device)
    stream, objective = _MapStream(data, settings.batch), _MapObjective(module, data.task)
    job = TrainingJob(data.name, objective, stream, steps, data.scratch, settings, data.seed)
    with ProcessGroup(device) as group:
        fitted = fit(job, ComputeConfig(device, "32", False, {}), group, data.runtime)
    return Cost(steps, steps * settings.batch, fitted.seconds)


def score_on_maps(module: nn.Module, task: Task, images: LabelledMaps) -> dict[str, float]:
    """Return the task's metrics of a module's predictions for labelled maps."""
    metric = task.metrics()
    update_metric(metric, module, task, images)
    return metric.compute()


@torch.inference_mode()
def update_metric(metric: Metric, module: nn.Module, task: Task, images: LabelledMaps) -> None:
    """Add a module's predictions for labelled maps to a metric. It computes on the device that it is on."""
    device = next(module.parameters()).device
    module.eval()
    for start in range(0, len(images.keys), BATCH):
        rows = range(start, min(start + BATCH, len(images.keys)))
        output = module([level[start : rows.stop].to(device).float() for level in images.maps])
        prediction = to_numpy(task.predict(output))
        for offset, row in enumerate(rows):
            placement = Placement(images.sizes[row], (images.side, images.side))
            metric.update(task.value(prediction, offset, placement), images.values[row])
