"""Tiny objectives on batches of numbers, and a `train` that fits them with the real loop, for tests."""

from __future__ import annotations

import dataclasses
import itertools
import json
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.stream import split_evenly
from pipeline.recipe.base import FitConfig
from pipeline.steps import ranks
from pipeline.steps.runtime import Runtime
from pipeline.storage import root
from pipeline.training.autotune import ComputeConfig
from pipeline.training.fit import FitResult, fit
from pipeline.training.objective import Objective, TrainingJob
from pipeline.training.process_group import ProcessGroup

STEPS = 6
CPU_32 = ComputeConfig("cpu", "32", False, {})
LOG, STATE = "log/train.jsonl", "work/state.safetensors"


@dataclasses.dataclass
class Batch:
    """images (B, 3, 4, 4), targets (B, 2); image 1 of batch 7 has the key 7.1."""

    images: Tensor
    targets: Tensor
    keys: list[str]


def make_batch(number: int) -> Batch:
    random = torch.Generator().manual_seed(number)
    images, targets = torch.randn(4, 3, 4, 4, generator=random), torch.randn(4, 2, generator=random)
    return Batch(images, targets, [f"{number}.{index}" for index in range(4)])


def infinite_image(number: int) -> Batch:
    """Make a batch; image 3 of number 3 is infinite."""
    batch = make_batch(number)
    batch.images[3] *= torch.inf if number == 3 else 1
    return batch


def non_finite_gradient(number: int) -> Batch:
    """Make a batch; number 3 has zero error with any weights, and so an infinite gradient of its root."""
    batch, scale = make_batch(number), number != 3
    return dataclasses.replace(batch, images=batch.images * scale, targets=batch.targets * scale)


def concat(batches: Sequence[Batch]) -> Batch:
    images, targets = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "targets"))
    return Batch(images, targets, [key for batch in batches for key in batch.keys])


def slice_batch(batch: Batch, run: slice) -> Batch:
    return Batch(batch.images[run], batch.targets[run], batch.keys[run])


class LocalPart(Batch):
    """Images of one process that can be split into microbatches."""

    def split(self, count: int) -> list[Batch]:
        return [slice_batch(self, run) for run in split_evenly(len(self.keys), count)]


class NumberedStream:
    """This process's part of batches of any size, made from batches of four; `given` are the steps it was asked for."""

    def __init__(self, make: Callable[[int], Batch] = make_batch, batch: int = 4) -> None:
        self.make, self.batch = make, batch
        self.given: list[int] = []

    def batches(self, start: int) -> Generator[LocalPart]:
        for step in itertools.count(start):
            self.given.append(step)
            positions = [step * self.batch + slot for slot in ranks.share(self.batch)]
            images = [slice_batch(self.make(place // 4), slice(place % 4, place % 4 + 1)) for place in positions]
            yield LocalPart(**vars(concat(images)))


class ImageMean(Objective):
    """An objective whose loss is a mean over the images."""

    def amounts(self, batch: Batch) -> dict[str, float]:
        return {"images": len(batch.keys)}

    @abstractmethod
    def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean over the images of a batch, with its terms."""

    def forward(self, batch: Batch, shares: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self.mean(batch)
        return shares["images"] * loss, {name: shares["images"] * term for name, term in terms.items()}


class Linears(ImageMean):
    """Two linear layers and their mean squared error."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(48, 4), nn.Tanh())
        self.head = nn.Linear(4, 2)

    def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.head(self.backbone(batch.images.flatten(1))) - batch.targets).square().mean()
        return loss, {"error": loss.detach(), "half": loss.detach() / 2}


class ConvNet(ImageMean):
    """What makes resuming hard: a kernel with a memory layout, running statistics, and random numbers in each step."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 2))

    def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.head(self.backbone(batch.images)) - batch.targets).square().mean()
        return loss, {"error": loss.detach()}


class RootMeanSquare(ImageMean):
    """The root of the mean squared error: where that is zero, the loss has a value but no gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(48, 2, bias=False)

    def mean(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.head(batch.images.flatten(1)) - batch.targets).square().mean().sqrt(), {}


def calling_back(callback: Callable[[int, Runtime], None]) -> Runtime:
    """Return a runtime that calls back after each of `STEPS` steps, with its number."""
    here = root.Root.of(".")
    runtime = Runtime(here, "cpu", "32", 1, progress=lambda _, done, __: callback(round(done * STEPS), runtime))
    return runtime


def stopping(after: int) -> Runtime:
    """Return a runtime that is asked to stop after a step."""
    return calling_back(lambda step, runtime: runtime.stop.set() if step == after else None)


QUIET = calling_back(lambda step, runtime: None)


def train(
    out: Path, model: Objective, runtime: Runtime = QUIET, compute: ComputeConfig = CPU_32, **fields: Any
) -> nn.Module:
    """Fit `model` and return it; `fields` are the configuration's, and `stream` and `seed` may be among them."""
    train_with_result(out, model, runtime, compute, **fields)
    return model


def train_with_result(
    out: Path, model: Objective, runtime: Runtime = QUIET, compute: ComputeConfig = CPU_32, **fields: Any
) -> FitResult:
    """Fit `model` as `train` does, and return the result."""
    given = {"steps": STEPS, "batch": 4, "lr": 0.05, "warmup": 0.3, **fields}
    runtime = dataclasses.replace(runtime, checkpoint_s=given.pop("checkpoint_s", 1e9))
    stream, seed = given.pop("stream", None) or NumberedStream(batch=given["batch"]), given.pop("seed", 0)
    validation = given.pop("validation", None)
    config = FitConfig.model_validate(given)
    job = TrainingJob("teacher.t", model, stream, given["steps"], out, config, seed, validation)
    with ProcessGroup(compute.device) as group:
        return fit(job, compute, group, runtime)


def log(out: Path) -> list[dict[str, Any]]:
    """Return the lines of the log, without what depends on the clock."""
    lines = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    return [{key: line[key] for key in line if key not in ("images_per_s", "waited_s")} for line in lines]


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Assert that both have the same state bit for bit, running statistics included."""
    others = other.state_dict()
    assert [name for name, tensor in one.state_dict().items() if not torch.equal(tensor, others[name])] == []


def vector(module: nn.Module) -> Tensor:
    """Return all parameters as one vector."""
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()
