"""Training a network on joined images and labels, and predicting with it: what teachers and the student share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from pipeline.data.dataset import ImageDataset
from pipeline.data.loader import Batch, Loader, LoaderConfig
from pipeline.errors import DataError
from pipeline.recipe.augment import AugmentConfig
from pipeline.recipe.base import FitConfig
from pipeline.steps import ranks
from pipeline.steps.runtime import Runtime
from pipeline.training import autotune
from pipeline.training.autotune import ComputeConfig
from pipeline.training.fit import Fitted, fit
from pipeline.training.objective import Objective, TrainingJob
from pipeline.training.process_group import ProcessGroup
from tasks.network import Network

PROBE_IMAGES = 4
"""A training step is timed on."""


class SupervisedObjective(Objective):
    """The objective of supervised learning: a network's losses and the rule that combines them to one number.

    `combine` is called on the losses and on the share of the step's labels that each is a mean over. Where no image has
    a label that number is 0, with a graph: of several processes one may have drawn such a share.
    """

    def __init__(self, network: Network, combine: nn.Module, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.network, self.combine, self.memory_format = network, combine, memory_format

    def amounts(self, batch: Batch) -> dict[str, float]:
        return {name: self.network.tasks[name].amount(found["target"]) for name, found in batch.targets.items()}

    def forward(self, batch: Batch, shares: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch.images.contiguous(memory_format=self.memory_format)
        if not batch.targets:
            return self.network.features(images).top.float().mean() * 0, {}
        losses = self.network.losses(images, batch.targets)
        return self.combine(losses, shares), {name: shares[name] * loss.detach() for name, loss in losses.items()}


class WeightedSum(nn.Module):
    """Losses times fixed weights and their shares of the step, added up: sum_i w_i s_i L_i."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def forward(self, losses: Mapping[str, Tensor], shares: Mapping[str, float]) -> Tensor:
        return torch.stack([self.weights[name] * shares[name] * loss for name, loss in losses.items()]).sum()


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """How a network is trained: schedule, augmentation and seed."""

    name: str
    fit: FitConfig
    augment: AugmentConfig
    seed: int
    out: Path


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """A training: the way it was run, the number of processes, and how it went."""

    choice: ComputeConfig
    processes: int
    fitted: Fitted

    def counts(self) -> dict[str, Any]:
        """For a step's counts: `choice`, if there are several `processes`, and what `Fitted.counts` tells."""
        counts: dict[str, Any] = {"choice": self.choice.describe()}
        if self.processes > 1:
            counts["processes"] = self.processes
        return {**counts, **self.fitted.counts()}


def train_network(
    network: Network, combine: nn.Module, dataset: ImageDataset, plan: TrainingPlan, runtime: Runtime
) -> TrainingResult:
    """Train `network` in place on the library; `place` is (name, folder, runtime).

    Called in every process that torchrun started, it trains the same network in all of them; what is left to do with it
    is the first one's. On CUDA, the backbone's batch norms then see the images of all processes (SyncBatchNorm). Those
    of the heads, which no process runs on images without a label, and all on the CPU see the process's own.
    """
    if not len(dataset):
        raise DataError(f"{plan.name}: there is not one labelled image to train on.")
    with ProcessGroup(autotune.find_device(runtime.device)) as group:
        loader = _loader(network, dataset, plan, runtime)
        about = [network.config.architecture(), "train"]
        plain = SupervisedObjective(network, combine, torch.contiguous_format)
        choice = group.broadcast_made(lambda: autotune.autotune(runtime, about, plain, _probe(loader)))
        if group.count > 1 and choice.device == "cuda":
            network.backbone = convert_sync_batchnorm(network.backbone)
        objective = SupervisedObjective(network, combine, choice.memory_format)
        steps = plan.fit.total_steps(len(dataset))
        job = TrainingJob(plan.name, objective, loader, steps, plan.out, plan.fit, plan.seed)
        return TrainingResult(choice, group.count, fit(job, choice, group, runtime))


def _loader(network: Network, dataset: ImageDataset, plan: TrainingPlan, runtime: Runtime) -> Loader:
    """This process's share of every batch."""
    collate = {head: task.collate for head, task in network.tasks.items()}
    size, batch = network.config.image_size, plan.fit.batch
    slots = ranks.share(batch)
    return Loader(dataset, collate, LoaderConfig(size, batch, plan.seed, plan.augment, runtime.threads, slots))


def _probe(loader: Loader) -> Callable[[nn.Module, ComputeConfig], None]:
    """A training step on a few real images, for timing."""
    small = dataclasses.replace(loader.config, batch=PROBE_IMAGES, slots=None)
    batch = Loader(loader.dataset, loader.collate, small).batch(0)

    def call(model: nn.Module, choice: ComputeConfig) -> None:
        assert isinstance(model, SupervisedObjective)
        model.memory_format = choice.memory_format
        with choice.autocast():
            total, _ = model.train()(move_data_to_device(batch, choice.device), dict.fromkeys(batch.targets, 1.0))
        total.backward()
        model.zero_grad()

    return call
