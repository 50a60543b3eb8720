"""How a stage's method is trained: on what device and in what format, from where on, and what is told of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from pipeline.steps.runtime import Runtime
from pipeline.training import autotune
from pipeline.training.autotune import ComputeConfig
from pipeline.training.fit import fit
from pipeline.training.objective import TrainingJob
from pipeline.training.process_group import ProcessGroup
from pipeline.training.state import has_state
from selfsup.components.config import MethodConfig
from selfsup.components.method import Method
from selfsup.stages.collapse import is_collapsed, look
from selfsup.stages.objective import StageObjective
from selfsup.stages.stream import ViewStream

PROBED = 8
"""Images that a step is timed on."""
NO_MATTER = ("name", "data", "start", "share", "steps", "epochs", "lr", "backbone_lr", "weight_decay", "momentum")
"""Keys of a stage that the speed of its steps does not depend on."""


def train(
    named: tuple[str, MethodConfig], method: Method, stream: ViewStream, runtime: Runtime, out: Path
) -> dict[str, Any]:
    """Train the method in place on the stream's views, or go on from the state in `out`; `named`: what the step is
    called, and its stage. What the manifest tells of it: how it was computed, and the features before and after.
    """
    (name, stage), images = named, stream.dataset
    with ProcessGroup(autotune.find_device(runtime.device)) as group:
        choice = _choose(stage, method, stream, runtime)
        learning = choice.place(StageObjective(method, stream.kinds, stream.budget.steps, choice.memory_format))
        job = TrainingJob(name, learning, stream.supply(runtime.threads), stream.budget.steps, out, stage, stream.seed)
        before = look(method.backbone, images, runtime)
        if not has_state(out):
            _begin(name, method, stream, choice, runtime)
        fitted = fit(job, choice, group, runtime)
        after = look(method.backbone, images, runtime)
    features = {"before": before, "after": after, "collapsed": is_collapsed(before, after)}
    return {"features": features, "choice": choice.describe(), **fitted.counts()}


def _choose(stage: MethodConfig, method: Method, stream: ViewStream, runtime: Runtime) -> ComputeConfig:
    """How this machine trains the method fastest."""
    about = [stage.model_dump(mode="json", exclude=set(NO_MATTER)), method.backbone.name, method.backbone.size, "stage"]
    plain = StageObjective(method, stream.kinds, stream.budget.steps, torch.contiguous_format)
    return autotune.autotune(runtime, about, plain, _probe(stream))


def _probe(stream: ViewStream) -> Callable[[nn.Module, ComputeConfig], None]:
    """A training step on a few real images, for timing."""
    with contextlib.closing(stream.once(PROBED, 1)) as batches:
        batch = next(batches)

    def call(model: nn.Module, choice: ComputeConfig) -> None:
        shares = {"images": 1.0, "labelled": 0.0}
        model.memory_format = choice.memory_format  # type: ignore[assignment]  # a module's attributes have no types
        with choice.autocast():
            total, _ = model(move_data_to_device(batch, choice.device), shares)
        total.backward()
        model.zero_grad()

    return call


@torch.no_grad()
def _begin(name: str, method: Method, stream: ViewStream, choice: ComputeConfig, runtime: Runtime) -> None:
    """Show every image once to a method that wants to see them all before the first step."""
    if type(method).begin is Method.begin:
        return
    every, seen = len(stream.dataset), 0

    def batches() -> Iterator[tuple[Tensor, list[Tensor]]]:
        nonlocal seen
        for batch in stream.once(stream.budget.batch, runtime.threads):
            runtime.check_stop(name)
            moved = move_data_to_device(batch, choice.device)
            yield moved.index, [images.float() / 255 for images in moved.unlabelled]
            seen += len(batch.keys)
            runtime.progress(name, 0.0, f"{seen:,} of {every:,} images seen before the first step")

    with choice.autocast():
        method.eval().begin(batches())
    method.train()
