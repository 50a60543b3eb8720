"""Train a `Network` on images and their labels: what supervised teachers, the student and fine-tuning share."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

import tasks
from pipeline.data.dataset import ImageDataset
from pipeline.data.loader import WEIGHTS, Batch, BatchLoader, LoaderConfig
from pipeline.data.sampling import random_order
from pipeline.errors import ConfigError, DataError, error_context
from pipeline.recipe.augment import AugmentConfig
from pipeline.recipe.base import FitConfig, ValidateConfig
from pipeline.steps import ranks
from pipeline.steps.runtime import Runtime
from pipeline.stores.labels import LabelSpace, Value
from pipeline.training.autotune import ComputeConfig, TimedCall, autotune, timed_images
from pipeline.training.collectives import synchronize_batch_norms
from pipeline.training.device import find_device, move_to_device
from pipeline.training.fit import FitResult, fit
from pipeline.training.microbatch import images_per_pass
from pipeline.training.objective import Objective, TrainingJob
from pipeline.training.process_group import ProcessGroup
from pipeline.training.validation import Validation
from tasks.frozen_teacher import FrozenTeacher
from tasks.network import Network
from tasks.prediction import network_predictor
from tasks.scoring import score
from tasks.task import per_image

MEAN = "mean"
"""Name of the mean over heads in a validation."""
IMAGES = "images"
"""Name of the amount of all images."""
STATISTICS_IMAGES = 2000
"""Labelled images that a label space's statistics are measured on, at most."""
AUTOTUNE_IMAGES = 4
"""Images of the training step that is timed on a CPU."""


@runtime_checkable
class LossObserver(Protocol):
    """A combination of losses whose weights follow from the losses of the steps before."""

    def observe(self, losses: Mapping[str, float]) -> None:
        """Look at the losses of a step by head; those of heads without a label in it are 0 or not there."""


class SupervisedObjective(Objective):
    """The losses of a network's heads, combined to one number by `combine(losses, shares)`.

    Heads of `live` teachers learn what these say of the batch's augmented images.

    A loss L is a mean over the n of the step's b images of which something is known for the head. It counts n / b of
    it, as if the others had a loss of 0: an image then moves the network as far however many others are labelled.
    Images without a label are such, and those whose label a threshold drops or a crop has nothing of. Shares in this
    are also those of the step's labels in a microbatch (`Objective.forward`). A batch without any label gives 0, with a
    graph: one of several processes may have drawn such a part.
    """

    def __init__(
        self,
        network: Network,
        combine: nn.Module,
        memory_format: torch.memory_format,
        live: Mapping[str, FrozenTeacher] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.network, self.combine, self.memory_format = network, combine, memory_format
        self.live = nn.ModuleDict(live)

    @property
    def observes(self) -> bool:
        return isinstance(self.combine, LossObserver)

    def observe(self, losses: Mapping[str, float]) -> None:
        if isinstance(self.combine, LossObserver):
            self.combine.observe(losses)

    def amounts(self, batch: Batch) -> dict[str, float]:
        amounts: dict[str, float] = {IMAGES: len(batch.keys)}
        for name, entry in batch.targets.items():
            known, weights = self.network.tasks[name].known(entry["target"]), entry["target"].get(WEIGHTS)
            counted = known if weights is None else known * per_image(weights, known)
            amounts |= {name: float(counted.sum()), _images_of(name): float(_any_known(known).sum())}
        for name in self.live:
            told = self.network.tasks[name].live_known(len(batch.keys), batch.images.shape[-1], batch.valid)
            amounts |= {name: float(told.sum()), _images_of(name): amounts[IMAGES]}
        return amounts

    def forward(self, batch: Batch, shares: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch.images.contiguous(memory_format=self.memory_format)
        targets = {**batch.targets, **self._live_targets(batch)}
        if not targets:
            return self.network.backbone(images).float().mean() * 0, {}
        losses = self.network.losses(images, targets)
        counted = {
            name: shares[name] * (1.0 if name in self.live else self._labelled_share(name, batch, shares))
            for name in losses
        }
        return self.combine(losses, counted), {name: shares[name] * loss.detach() for name, loss in losses.items()}

    def _live_targets(self, batch: Batch) -> dict[str, Any]:
        """Return what live teachers say of the images, as entries of `Batch.targets`."""
        images = batch.images
        rows, teachers = torch.arange(len(images), device=images.device), cast(dict[str, FrozenTeacher], self.live)
        said = {name: teacher.output(images) for name, teacher in teachers.items()}
        return {
            name: {"rows": rows, "target": self.network.tasks[name].live_target(output, images.shape[-1], batch.valid)}
            for name, output in said.items()
        }

    def _labelled_share(self, name: str, batch: Batch, shares: Mapping[str, float]) -> Tensor | float:
        """Return n / b of the whole step: this microbatch's images by the shares that they are of the step's.

        It stays on the device, so that nothing waits for it.
        """
        if not shares[_images_of(name)]:
            return 0.0
        labelled = _any_known(self.network.tasks[name].known(batch.targets[name]["target"])).sum()
        return (labelled / shares[_images_of(name)]) / (len(batch.keys) / shares[IMAGES])


def _any_known(known: Tensor) -> Tensor:
    """Return of which images anything is known, bool (n,)."""
    return known.reshape(len(known), -1).any(dim=1)


def _images_of(head: str) -> str:
    """Return the name of the amount of images that have a label for a head; no head's name has a blank."""
    return f"{IMAGES} with {head}"


class WeightedSum(nn.Module):
    """Combine losses L_i with fixed weights w_i and their shares s_i of the step's images: sum_i w_i s_i L_i."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def forward(self, losses: Mapping[str, Tensor], shares: Mapping[str, float]) -> Tensor:
        return torch.stack([self.weights[name] * shares[name] * loss for name, loss in losses.items()]).sum()


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """Everything that `train_network` needs to know besides the network, its data and the machine."""

    name: str
    """For messages, as `teacher.depth`."""
    fit: FitConfig
    augment: AugmentConfig
    seed: int
    out: Path
    """Folder for the log and for the state that an interrupted training resumes from."""
    held_out: Mapping[str, ImageDataset] = dataclasses.field(default_factory=dict)
    """By head, the labelled images that `fit.validate` measures on; not needed without."""
    live: Mapping[str, FrozenTeacher] = dataclasses.field(default_factory=dict)
    """By head, the teachers that are asked about each batch, instead of labels."""


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """The course of a training and its log; the weights are in the network."""

    compute: ComputeConfig
    processes: int
    fitted: FitResult

    def counts(self) -> dict[str, Any]:
        """Return the entries of a manifest's counts: `choice`, `processes` if several, and `FitResult.counts`."""
        processes = {"processes": self.processes} if self.processes > 1 else {}
        return {"choice": self.compute.describe(), **processes, **self.fitted.counts()}


def fitted_space(space: LabelSpace, images: ImageDataset, head: str) -> LabelSpace:
    """Return the label space with what its task has to know of the labels of `head` of the images that are learned.

    Of more than STATISTICS_IMAGES images with such a label, so many are looked at, drawn at random. Raises DataError if
    the task needs to know something and no label tells it.
    """

    def values() -> Iterator[Value]:
        labelled, keys = images.labelled(head), images.keys()
        drawn = labelled[random_order([keys[index] for index in labelled], 0)[:STATISTICS_IMAGES]]
        yield from (images.values(index)[head] for index in sorted(drawn.tolist()))

    return tasks.model(space).fit_space(values())


def train_network(
    network: Network, combine: nn.Module, dataset: ImageDataset, plan: TrainingPlan, runtime: Runtime
) -> TrainingResult:
    """Train `network` in place. Raises DataError if the dataset is empty or the loss stops being finite,
    ConfigError if a batch is far larger than the dataset.

    Under torchrun, every process calls this and ends with the same weights; only the first should save them. With
    several processes on CUDA, the backbone's batch norms are synchronized (SyncBatchNorm). Those of the heads are not,
    as a process skips a head that none of its images has a label for; nor are any on the CPU.

    Example:
        plan = TrainingPlan("teacher.depth", fit_config, AugmentConfig(), seed=0, out=folder)
        train_network(network, WeightedSum({"depth": 1.0}), dataset, plan, runtime)
    """
    if not len(dataset):
        raise DataError(
            f"{plan.name}: there is not one image with a label for {', '.join(network.tasks)} to train on: add "
            "labelled images to the split 'train' of its set, or hold out fewer."
        )
    with error_context(plan.name):
        plan.fit.check_batch(len(dataset))
    with ProcessGroup(find_device(runtime.device)) as group:
        if runtime.gradient_checkpointing:
            network.backbone.checkpoint_blocks()
        loader = _loader(network, dataset, plan, runtime)
        model_id = [network.config.architecture(), "train heads" if network.backbone.frozen else "train", *plan.live]
        plain = SupervisedObjective(network, combine, torch.contiguous_format, plan.live)
        images = timed_images(find_device(runtime.device), AUTOTUNE_IMAGES, images_per_pass(plan.fit, group.world_size))
        compute = autotune(runtime, [*model_id, images], plain, _timed_step(loader, images), group)
        network.backbone = synchronize_batch_norms(network.backbone, group, compute.device)
        objective = SupervisedObjective(network, combine, compute.memory_format, plan.live)
        steps = plan.fit.total_steps(len(dataset))
        validation = (
            network_validation(plan.fit.validate, plan.held_out, network, runtime) if plan.fit.validate else None
        )
        job = TrainingJob(plan.name, objective, loader, steps, plan.out, plan.fit, plan.seed, validation)
        return TrainingResult(compute, group.world_size, fit(job, compute, group, runtime))


def network_validation(
    config: ValidateConfig, held_out: Mapping[str, ImageDataset], network: Network, runtime: Runtime
) -> Validation:
    """Return how a network's heads are measured on their held-out images while it is trained.

    One head is judged by its task's leading metric. Several are judged by the mean of their first metrics of which more
    is better, such as accuracy and mIoU; a task without one is measured, but does not count.
    """
    better = {head: network.tasks[head].better for head in held_out}
    judged_by = {head: metric for head, metrics in better.items() if (metric := _first_rising_metric(metrics))}

    def measure(objective: nn.Module, compute: ComputeConfig) -> dict[str, float]:
        assert isinstance(objective, SupervisedObjective)
        predictor = network_predictor(objective.network)
        predictor.compute = compute
        scores = {head: score(predictor, images, head, runtime) for head, images in held_out.items()}
        if len(scores) == 1:
            return next(iter(scores.values()))
        named = {f"{head} {metric}": value for head, values in scores.items() for metric, value in values.items()}
        return {MEAN: statistics.fmean(scores[head][metric] for head, metric in judged_by.items()), **named}

    if len(better) > 1:
        if not judged_by:
            raise ConfigError(f"validate: no task of {', '.join(better)} has a metric of which more is better.")
        return Validation(config, measure, MEAN, "higher")
    [metrics] = better.values()
    leading = next(iter(metrics))
    return Validation(config, measure, leading, "higher" if metrics[leading] == "higher" else "lower")


def _first_rising_metric(better: Mapping[str, str]) -> str | None:
    """Return the first metric of a task that is better when it is higher, or None."""
    return next((metric for metric, direction in better.items() if direction == "higher"), None)


def _loader(network: Network, dataset: ImageDataset, plan: TrainingPlan, runtime: Runtime) -> BatchLoader:
    """Return the loader of this process's part of every batch."""
    collate = {head: task.collate for head, task in network.tasks.items()}
    made, batch = network.config, plan.fit.batch
    slots = ranks.share(batch)
    config = LoaderConfig(made.image_size, made.resize, batch, plan.seed, plan.augment, runtime.threads, slots)
    return BatchLoader(dataset, collate, config)


def _timed_step(loader: BatchLoader, images: int) -> TimedCall:
    """Return a function that runs a forward and a backward pass on real images, read at its first call."""

    @functools.cache
    def load() -> Batch:
        small = dataclasses.replace(loader.config, batch=images, slots=None)
        return BatchLoader(loader.dataset, loader.collate, small).batch(0)

    def call(model: nn.Module, compute: ComputeConfig) -> None:
        assert isinstance(model, SupervisedObjective)
        model.memory_format, batch = compute.memory_format, load()
        with compute.autocast():
            whole = dict.fromkeys(model.amounts(batch), 1.0)
            total, _ = model.train()(move_to_device(batch, compute.device), whole)
        total.backward()
        model.zero_grad()

    return call
