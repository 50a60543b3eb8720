"""The step of a self-supervised stage."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import machine
from pipeline.artifacts import Inputs
from pipeline.errors import ConfigError
from pipeline.fit import fit
from pipeline.job import Job
from pipeline.loader import Layer, Library, Shelf
from pipeline.machine import Choice
from pipeline.record import has_state
from pipeline.runtime import Runtime
from pipeline.sections import EPOCHS
from pipeline.stages import StageConfig, class_names, labelled_images
from pipeline.starts import leave
from pipeline.team import Team
from selfsup.parts.config import MethodConfig
from selfsup.parts.method import Method, Setting
from selfsup.stages.labelled import ClassSampler, class_sampler
from selfsup.stages.objective import Learning, changed
from selfsup.stages.start import start_of
from selfsup.stages.stream import Budget, ViewStream
from selfsup.stages.watch import COLLAPSED, look
from tasks.ingest import IngestedSet
from tasks.network import seed_part
from tasks.pool import pool_keys, pool_shards
from tasks.shelves import truth_library

PROBED, FEWEST = 8, 2
"""Images that a step is timed on, and images that there have to be."""
NOTHING: Mapping[str, tuple[Layer, ...]] = {}


def stage_config(settings: Mapping[str, Any]) -> MethodConfig:
    """The configuration of a stage, by its method's own class."""
    found: MethodConfig = importlib.import_module(f"selfsup.{settings['method']}").Config.model_validate(settings)
    return found


def run_stage(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Train the backbone of what came before on the images of the stage, and leave it with how images are normalised.

    `config`: `stage`, with all that `pipeline.stages.resolved` fills in, `seed`, and `start`, the step it starts from,
    null for none. Raises ConfigError if the method can't use the backbone, or if labels are too few.
    """
    stage, seed = stage_config(config["stage"]), config["seed"]
    images = images_of(stage, inputs, seed)
    start = start_of(stage, config["start"], inputs, images)
    sampler, budget = labels_of(stage, inputs, images, seed)
    steps = steps_of(stage, budget, len(images))
    budget = dataclasses.replace(budget, until=round(stage.labels.until * steps)) if stage.labels else budget
    seed_part(seed, f"stage.{stage.name}")
    method = stage.on(start.encoder(), Setting(start.size, len(images), stage.batch))
    crops = changed(method.crops(), stage.augment)
    stream = ViewStream(images, crops, budget, sampler, seed)
    about = [stage.model_dump(mode="json"), start.name, start.size, "stage"]
    with Team(machine.find_device(inputs.runtime.device)) as team:
        plain = Learning(method, crops, steps, torch.contiguous_format)
        choice = machine.choose(inputs.runtime, about, plain, _probe(stream))
        learning = choice.place(Learning(method, crops, steps, choice.memory_format))
        before = look(method.backbone, images, inputs.runtime)
        if not has_state(out):
            _begin(learning, stream, choice, (stage, inputs.runtime))
        job = Job(f"stage.{stage.name}", learning, stream.supply(inputs.runtime.threads), steps, out, stage, seed)
        cuts = fit(job, choice, team, inputs.runtime)
        after = look(method.backbone, images, inputs.runtime)
    leave(method.backbone.cpu(), out)
    features = {"before": before, "after": after, "collapsed": after["spread"] < COLLAPSED}
    counts = {"images": len(images), "steps": steps, "family": method.family, "features": features}
    counts["choice"] = choice.describe()
    return {**counts, **({"out_of_memory": [cut._asdict() for cut in cuts]} if cuts else {})}


def images_of(stage: StageConfig, inputs: Inputs, seed: int) -> Library:
    """The images of the stage's pool, or the stage's share of them. ConfigError if they are fewer than two."""
    pool = inputs[f"pool.{stage.name}"]
    chosen = pool_keys(pool, stage.share, seed)
    shelves = []
    for _, shard, rows in pool_shards(pool, inputs.of_kind("data")):
        kept = np.array([shard.keys[row] in chosen for row in rows], dtype=bool)
        shelves.append(Shelf(shard, rows[kept], NOTHING))
    library = Library(shelves)
    if len(library) < FEWEST:
        raise ConfigError(
            f"stages.{stage.name}: {len(library)} images to train on in {', '.join(stage.data)}: {FEWEST} or more are "
            "needed."
        )
    return library


def labels_of(stage: StageConfig, inputs: Inputs, images: Library, seed: int) -> tuple[ClassSampler | None, Budget]:
    """What draws the labelled images of each step, and how many images of which kind a step has. ConfigError if the
    stage asks for labels that its sets lack.
    """
    if stage.labels is None:
        return None, Budget(stage.batch)
    names, of = classes_of(stage, inputs, images)
    sampler = class_sampler(stage.labels, names, of, seed)
    return sampler, Budget(stage.batch, labelled_images(stage, names))


def steps_of(stage: StageConfig, budget: Budget, images: int) -> int:
    """Optimiser steps: as many as it takes to see the images as often as the epochs say, beside labelled ones."""
    if stage.steps or stage.labels is None:
        return stage.total_steps(images)
    until = stage.labels.until
    a_step = until * budget.beside + (1 - until) * budget.batch
    return max(1, math.ceil((stage.epochs or EPOCHS) * images / a_step))


def classes_of(stage: StageConfig, inputs: Inputs, images: Library) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The classes, and for each image the number of its class, -1 where that is not known."""
    sets = {name: IngestedSet(inputs[f"data.{name}"]) for name in stage.data}
    names = class_names(stage, {name: found.spaces for name, found in sets.items()})
    known: dict[str, int] = {}
    for found in sets.values():
        if "classification" in found.spaces:
            labelled = truth_library(found, "train", {"kind": "classification"})
            for index in range(len(labelled)):
                number, row = labelled.locate(index)
                key = labelled.shelves[number].images.keys[row]
                known[key] = int(labelled.values(index)["kind"]["probs"].argmax())
    keys = [key for shelf in images.shelves for key in _keys(shelf)]
    return names, np.array([known.get(key, -1) for key in keys])


def _keys(shelf: Shelf) -> list[str]:
    return [shelf.images.keys[row] for row in shelf.rows]


def _probe(stream: ViewStream) -> Callable[[nn.Module, Choice], None]:
    """A training step on a few real images, for timing."""
    with contextlib.closing(stream.once(PROBED, 1)) as batches:
        batch = next(batches)

    def call(model: nn.Module, choice: Choice) -> None:
        shares = {"images": 1.0, "labelled": 0.0}
        model.memory_format = choice.memory_format  # type: ignore[assignment]  # a module's attributes have no types
        with choice.autocast():
            total, _ = model(move_data_to_device(batch, choice.device), shares)
        total.backward()
        model.zero_grad()

    return call


@torch.no_grad()
def _begin(learning: Learning, stream: ViewStream, choice: Choice, told: tuple[StageConfig, Runtime]) -> None:
    """Show every image once to a method that wants to see them all before the first step."""
    if type(learning.method).begin is Method.begin:
        return

    stage, runtime = told
    step, every, seen = f"stage.{stage.name}", len(stream.library), 0

    def batches() -> Iterator[tuple[Tensor, list[Tensor]]]:
        nonlocal seen
        for batch in stream.once(stage.batch, runtime.threads):
            runtime.check_stop(step)
            moved = move_data_to_device(batch, choice.device)
            yield moved.index, [crop.float() / 255 for crop in moved.crops]
            seen += len(batch.keys)
            runtime.progress(step, 0.0, f"{seen:,} of {every:,} images seen before the first step")

    with choice.autocast():
        learning.method.eval().begin(batches())
    learning.method.train()
