"""Training of a stage's method: choose how to compute it, resume it, and measure the features before and after."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.data.loader import to_float
from pipeline.errors import ConfigError
from pipeline.steps.runtime import Runtime
from pipeline.training import autotune
from pipeline.training.autotune import ComputeConfig, TimedCall
from pipeline.training.collectives import Collectives, synchronize_batch_norms
from pipeline.training.device import find_device, move_to_device
from pipeline.training.fit import fit
from pipeline.training.microbatch import images_per_pass
from pipeline.training.objective import TrainingJob
from pipeline.training.process_group import ProcessGroup
from pipeline.training.state import has_state
from pipeline.training.validation import Validation
from selfsup.components.config import MethodConfig
from selfsup.components.method import Method
from selfsup.stages.collapse import is_collapsed, measure_features
from selfsup.stages.objective import StageObjective
from selfsup.stages.stream import ViewStream
from tasks.training import TrainingResult

AUTOTUNE_IMAGES = 8
"""Images of the training step that is timed on a CPU."""
SAME_SPEED = {
    "name",
    "data",
    "start",
    "share",
    "steps",
    "epochs",
    "lr",
    "backbone_lr",
    "weight_decay",
    "momentum",
    "validate",
}
"""Keys of a stage that do not change the speed of its steps."""


class StageJob(NamedTuple):
    """A stage to train, under the name of its step: its settings, its method, and the views that the method sees."""

    name: str
    settings: MethodConfig
    method: Method
    stream: ViewStream
    validation: Validation | None


def train(job: StageJob, runtime: Runtime, out: Path) -> dict[str, Any]:
    """Train the method of a stage in place, or resume from the state in `out`.

    Returns counts for the manifest: how it was computed, and the features before and after. Several processes see their
    share of each batch and compare it with those of the others, if the method compares images. With several on CUDA,
    all batch norms are synchronised: those of the backbone, of heads and of momentum encoders, which a process never
    skips.
    """
    name, stage, method, stream, validation = job
    with ProcessGroup(find_device(runtime.device)) as group:
        _check_shares(job, group)
        if runtime.gradient_checkpointing:
            for backbone in (method.backbone, *method.other_backbones().values()):
                backbone.checkpoint_blocks()
        settings = stage.model_dump(mode="json", exclude=SAME_SPEED)
        per_pass = images_per_pass(stage, group.world_size)
        images = autotune.timed_images(find_device(runtime.device), AUTOTUNE_IMAGES, per_pass)
        key = [settings, method.backbone.name, method.backbone.size, "stage", images]
        plain = StageObjective(method, stream.kinds)
        compute = autotune.autotune(runtime, key, plain, _timed_step(stream, images), group)
        method = synchronize_batch_norms(method, group, compute.device)
        if method.communicates:
            method.collectives = Collectives(group.rank, group.world_size)  # not before: one process autotunes for all
        objective = compute.place(StageObjective(method, stream.kinds, compute.memory_format))
        batches = stream.prefetched(runtime.threads)
        steps = stream.budget.steps
        training = TrainingJob(name, objective, batches, steps, out, stage, stream.seed, validation)
        before = group.broadcast_result(lambda: measure_features(method.backbone, stream.dataset, runtime))
        if not group.broadcast_result(lambda: has_state(out)):
            _initialize(job, compute, group, runtime)
        fitted = fit(training, compute, group, runtime)
        after = group.broadcast_result(lambda: measure_features(method.backbone, stream.dataset, runtime))
    features = {"before": before, "after": after, "collapsed": is_collapsed(before, after)}
    return {"features": features, **TrainingResult(compute, group.world_size, fitted).counts()}


def _check_shares(job: StageJob, group: ProcessGroup) -> None:
    """Raise ConfigError if a process would have no image in some step, or when the method is initialized."""
    stream = job.stream
    fewest = stream.budget.fewest_images(len(stream.dataset))
    if fewest < group.world_size:
        raise ConfigError(
            f"{job.name}: {group.world_size} processes are too many for {fewest} unlabelled images in a step, of "
            f"{len(stream.dataset)} in the set. Set a larger batch, fewer labels.classes or labels.images, or at most "
            f"{fewest} processes."
        )


def _timed_step(stream: ViewStream, images: int) -> TimedCall:
    """Return a function that runs a forward and a backward pass on real images, read at its first call."""
    sample = functools.cache(lambda: stream.sample(images))

    def step(model: nn.Module, compute: ComputeConfig) -> None:
        batch = sample()
        shares = {"images": 1.0, "labelled": 0.0}
        model.memory_format = compute.memory_format  # type: ignore[assignment]  # a module's attributes have no types
        with compute.autocast():
            total, _ = model(move_to_device(batch, compute.device), shares)
        total.backward()
        model.zero_grad()

    return step


@torch.no_grad()
def _initialize(job: StageJob, compute: ComputeConfig, group: ProcessGroup, runtime: Runtime) -> None:
    """Show every image once to a method that overrides `initialize`, to each process its share of them."""
    name, method, stream = job.name, job.method, job.stream
    if type(method).initialize is Method.initialize:
        return
    total, seen = len(stream.dataset), 0

    def batches() -> Iterator[tuple[Tensor, list[Tensor]]]:
        nonlocal seen
        for batch in stream.single_pass(stream.budget.batch, runtime.threads):
            if any(group.all_gather(runtime.stop.is_set())):  # all at once, as none waits for one that has left
                runtime.stop.set()
                runtime.check_stop(name)
            moved = move_to_device(batch, compute.device)
            yield moved.index, [to_float(images) for images in moved.unlabelled]
            seen = min(total, seen + len(batch.keys) * group.world_size)
            runtime.progress(name, 0.0, f"{seen:,} of {total:,} images seen before the first step")

    with compute.autocast():
        method.train().initialize(batches())
