"""The step of a self-supervised stage."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import machine
from pipeline.artifacts import Inputs
from pipeline.augment import generator
from pipeline.errors import ConfigError
from pipeline.fit import fit
from pipeline.images import ImageShard
from pipeline.job import Job
from pipeline.loader import Layer, Library
from pipeline.machine import Choice
from pipeline.stages import StageConfig
from pipeline.team import Team
from selfsup.parts.config import MethodConfig
from selfsup.parts.method import Method, Setting
from selfsup.stages.labelled import ClassSampler, class_sampler
from selfsup.stages.objective import Learning, changed
from selfsup.stages.start import adapted, leave, of_artifact, of_recipe
from selfsup.stages.stream import Budget, CropBatch, ViewStream
from selfsup.stages.watch import COLLAPSED, look
from tasks.ingest import IngestedSet
from tasks.network import seed_part
from tasks.rejected import IMAGES, read_copy
from tasks.shelves import shelve, truth_library

PROBED = 8
"""Images that a step is timed on."""
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
    given = of_artifact(inputs[config["start"]]) if config["start"] else of_recipe(stage)
    start = adapted(given, stage, images)
    sampler, budget = labels_of(stage, inputs, images, seed)
    steps = stage.total_steps(len(images))
    seed_part(seed, f"stage.{stage.name}")
    method = stage.on(start.encoder(), Setting(start.size, len(images), stage.batch, steps))
    crops = changed(method.crops(), stage.augment)
    stream = ViewStream(images, crops, budget, sampler, seed)
    about = [stage.model_dump(mode="json"), start.name, start.size, "stage"]
    with Team(machine.find_device(inputs.runtime.device)) as team:
        plain = Learning(method, crops, steps, torch.contiguous_format)
        choice = machine.choose(inputs.runtime, about, plain, _probe(stream))
        learning = choice.place(Learning(method, crops, steps, choice.memory_format))
        before = look(method.backbone, images, start.size)
        _begin(learning, stream, choice, stage.batch)
        job = Job(f"stage.{stage.name}", learning, stream.supply(inputs.runtime.threads), steps, out, stage, seed)
        cuts = fit(job, choice, team, inputs.runtime)
        after = look(method.backbone, images, start.size)
    leave(method.backbone.cpu(), start.size, out)
    features = {"before": before, "after": after, "collapsed": after["spread"] < COLLAPSED}
    counts = {"images": len(images), "steps": steps, "family": method.family, "features": features}
    counts["choice"] = choice.describe()
    return {**counts, **({"out_of_memory": [cut._asdict() for cut in cuts]} if cuts else {})}


def images_of(stage: StageConfig, inputs: Inputs, seed: int) -> Library:
    """The images of the stage's sets that are for training, without those that were rejected, and without any that is
    also in a split to be measured on, of whatever set. ConfigError if none is left.
    """
    sets = {name: IngestedSet(made) for name, made in inputs.of_kind("data").items()}
    without = measured_keys(sets.values())
    if IMAGES in inputs.artifacts:
        without |= set(read_copy(inputs[IMAGES]).column("key").to_pylist())
    splits = [(sets[name], split) for name in stage.data for split in training_splits(sets[name])]
    if stage.share < 1:
        keys = {key for found, split in splits for shard in found.images(split).shards for key in shard.keys}
        without |= set(_order(sorted(keys - without), seed)[round(stage.share * len(keys - without)) :])
    shelves = [shelf for found, split in splits for shelf in shelve(found, split, lambda _: NOTHING, without)]
    library = Library(shelves)
    if not len(library):
        raise ConfigError(f"stages.{stage.name}: there is no image to train on in {', '.join(stage.data)}.")
    return library


def training_splits(found: IngestedSet) -> list[str]:
    """`train`, and `val` where the set has a `test` split that is measured on."""
    there = ["train", "val"] if found.counts.get("images.test") else ["train"]
    return [split for split in there if found.counts.get(f"images.{split}")]


def measured_keys(sets: Any) -> set[str]:
    """The keys of all images that anything is measured on: of `test`, or of `val` in a set without it."""
    return {
        key
        for found in sets
        for split in found.splits
        if split not in training_splits(found)
        for shard in found.images(split).shards
        for key in shard.keys
    }


def _order(keys: list[str], seed: int) -> list[str]:
    """Keys in an order of their own: the beginning of it is a part of any longer beginning."""
    return [keys[place] for place in generator(seed, len(keys)).permutation(len(keys))]


def labels_of(stage: StageConfig, inputs: Inputs, images: Library, seed: int) -> tuple[ClassSampler | None, Budget]:
    """What draws the labelled images of each step, and how many images of which kind a step has. ConfigError if the
    stage asks for labels that its sets lack.
    """
    if stage.labels is None:
        return None, Budget(stage.batch)
    names, of = classes_of(stage, inputs, images)
    sampler = class_sampler(stage.labels, names, of, seed)
    count = sampler.classes * sampler.images
    if count % 2 or count > 2 * (stage.batch - 1):
        raise ConfigError(
            f"stages.{stage.name}.labels: {sampler.classes} classes x {sampler.images} images make {count} beside "
            f"views of a batch of {stage.batch}: they have to be even and at most {2 * (stage.batch - 1)}."
        )
    return sampler, Budget(stage.batch, count, round(stage.labels.until * stage.total_steps(len(images))))


def classes_of(stage: StageConfig, inputs: Inputs, images: Library) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The classes, and for each image the number of its class, -1 where that is not known."""
    sets = {name: IngestedSet(inputs[f"data.{name}"]) for name in stage.data}
    spaces = {found.spaces["classification"] for found in sets.values() if "classification" in found.spaces}
    if len(spaces) != 1:
        raise ConfigError(
            f"stages.{stage.name}.labels: the sets {', '.join(stage.data)} have {len(spaces)} kinds of class labels; "
            "one is needed."
        )
    known: dict[str, int] = {}
    for found in sets.values():
        if "classification" in found.spaces:
            labelled = truth_library(found, "train", {"kind": "classification"})
            for index in range(len(labelled)):
                number, row = labelled.locate(index)
                key = labelled.shelves[number].images.keys[row]
                known[key] = int(labelled.values(index)["kind"]["probs"].argmax())
    keys = [key for shelf in images.shelves for key in _keys(shelf.images, shelf.rows)]
    return spaces.pop().classes, np.array([known.get(key, -1) for key in keys])


def _keys(shard: ImageShard, rows: NDArray[np.int64]) -> list[str]:
    return [shard.keys[row] for row in rows]


def _probe(stream: ViewStream) -> Callable[[nn.Module, Choice], None]:
    """A training step on a few real images, for timing."""
    batch = next(stream.once(PROBED))

    def call(model: nn.Module, choice: Choice) -> None:
        shares = {"images": 1.0, "labelled": 0.0}
        with choice.autocast():
            total, _ = model(_moved(batch, choice.device), shares)
        total.backward()
        model.zero_grad()

    return call


def _moved(batch: CropBatch, device: str) -> CropBatch:
    crops = [crop.to(device) for crop in batch.crops]
    return CropBatch(batch.keys, crops, batch.index.to(device), None, None, batch.step)


@torch.no_grad()
def _begin(learning: Learning, stream: ViewStream, choice: Choice, size: int) -> None:
    """Show every image once to a method that wants to see them all before the first step."""
    if type(learning.method).begin is Method.begin:
        return

    def batches() -> Iterator[tuple[Tensor, list[Tensor]]]:
        for batch in stream.once(size):
            moved = _moved(batch, choice.device)
            yield moved.index, [crop.float() / 255 for crop in moved.crops]

    with choice.autocast():
        learning.method.eval().begin(batches())
    learning.method.train()
