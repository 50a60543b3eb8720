"""Stand-ins for the training loop of a stage, to time one thing alone, and a plain loop with torch's DataLoader."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import synchronize
from pipeline.steps.runtime import Runtime, usable_cores
from pipeline.training.autotune import ComputeConfig
from pipeline.training.device import map_tensors, move_to_device
from pipeline.training.fit import FitResult
from pipeline.training.objective import Objective, TrainingJob
from pipeline.training.optimizer import build_optimizer
from pipeline.training.process_group import ProcessGroup
from selfsup.components.method import Position, Views
from selfsup.stages.stream import ImageViews, LocalViews, ViewStream, collate

Fit = Callable[[TrainingJob, ComputeConfig, ProcessGroup, Runtime], FitResult]
Steps = Callable[[Iterator[Any], TrainingJob, ComputeConfig], Iterator[Any]]


def fit_by(steps: Steps) -> Fit:
    """Return a function to call instead of `fit`: an item of `steps(local batches, job, compute)` is a step."""

    def fit(job: TrainingJob, compute: ComputeConfig, group: ProcessGroup, runtime: Runtime) -> FitResult:
        with contextlib.closing(job.stream.batches(0)) as batches:
            for step, _ in enumerate(itertools.islice(steps(batches, job, compute), job.steps), 1):
                runtime.progress(job.name, step / job.steps, "")
        return FitResult([], 0.0, 0.0, job.steps)

    return fit


def decode(batches: Iterator[LocalViews], job: TrainingJob, compute: ComputeConfig) -> Iterator[Any]:
    """Draw and collate views."""
    return (batch.split(1) for batch in batches)


def copy(batches: Iterator[LocalViews], job: TrainingJob, compute: ComputeConfig) -> Iterator[Any]:
    """Copy one step's views to the device again and again, from memory that it reads by itself."""

    def pin(tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if compute.device == "cuda" else tensor

    [views] = next(batches).split(1)
    pinned = map_tensors(views, pin)
    while True:
        yield move_to_device(pinned, compute.device)
        synchronize(compute.device)


def train_plainly(batches: Iterator[Views], job: TrainingJob, compute: ComputeConfig) -> Iterator[Any]:
    """Train as torch's tutorials do, in the stage's formats: a step reads its loss before the next one begins."""
    model: Objective = compute.place(job.objective.train())
    optimizer = build_optimizer(model, job.config)
    for views in batches:
        with compute.autocast():
            total, _ = model(move_to_device(views, compute.device), {"images": 1.0, "labelled": 0.0})
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield float(total.detach())


class SingleViews(Dataset[ImageViews]):
    """A stage's views image by image, as torch's DataLoader asks for them."""

    def __init__(self, stream: ViewStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return self.stream.budget.steps * self.stream.budget.batch

    def __getitem__(self, position: int) -> ImageViews:
        step, slot = divmod(position, self.stream.budget.batch)
        return self.stream.sample_makers(step)[slot]()


class WorkerViewStream(ViewStream):
    """A stage's views, drawn and collated by torch's DataLoader with a process per core."""

    def prefetched(self, threads: int) -> Any:
        return self

    def batches(self, start: int) -> Generator[Views]:
        """Yield views from the first step on; methods see all of them as of step 1, as no schedule matters here."""
        position = Position(1, self.budget.steps, 0)
        yield from DataLoader(
            SingleViews(self),
            self.budget.batch,
            num_workers=usable_cores(),
            collate_fn=lambda images: collate(images, None, position),
        )
