"""A run whose trainings read copies of images: they read nothing else, and what is no training reads the originals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import must
from evaluation import finetuning
from evaluation.comparison import supervised_baseline
from flows.plan.run_plan import plan_unchecked
from flows.plan.selection import Selection
from pipeline.data.dataset import ImageDataset
from pipeline.recipe.reader import read_recipe
from pipeline.steps.artifact import Inputs, Step
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.stores.images import ImageShard

RECIPE = """
name: copies
runtime: {runner: inline, device: cpu, precision: "32", workers: 1}
data:
  world: {kind: scenes, count: 10, test: 2, val: 2, seed: 1, size: 48, tasks: [classification]}
  pool: {kind: scenes, count: 6, seed: 2, size: 48}
shard_images: 4
resized: {world: 32, pool: 40}
teachers:
  kinds: {kind: supervised, task: classification, data: world, backbone: test_resnet, image_size: 32, width: 16,
    steps: 1, batch: 4, require: none}
pool: [pool, world]
student: {backbone: test_resnet, image_size: 32, width: 16, steps: 1, batch: 4}
stages: [{name: first, method: simclr, data: [world, pool], steps: 1, batch: 4}]
evaluate: {finetune: [world], starts: [student]}
compare: {all: {data: [world], methods: {simclr: {method: simclr}}, steps: [1], batch: 4, seeds: 1, probes: [knn]}}
"""

SUPERVISED = "compare.all.supervised.student.test_resnet.share1.steps1.seed0"


class Trained(Exception):
    """Ends a training before it begins, with its images."""


def test_trainings_read_copies_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, root = tmp_path / "copies.yaml", tmp_path / "root"
    path.write_text(RECIPE, "utf-8")
    trained: list[str] = []
    read: list[str] = []
    decode, read_image = ImageDataset.decode, ImageShard.read

    def watched_decode(images: ImageDataset, index: int, decoder: Callable[[bytes], Any]) -> tuple[str, Any]:
        trained.append(step_of(images.shards[images.locate(index)[0]].images))
        return decode(images, index, decoder)

    def watched_read(shard: ImageShard, index: int) -> bytes:
        read.append(step_of(shard))
        return read_image(shard, index)

    monkeypatch.setattr(ImageDataset, "decode", watched_decode)
    monkeypatch.setattr(ImageShard, "read", watched_read)
    outcome = must.run(path, root, steps=Selection("stages"))
    assert set(trained) == {"resized.world", "resized.pool"}
    assert set(read) == {"resized.world", "resized.pool", "data.world", "data.pool"}
    assert outcome.artifacts["resized.pool"].counts["larger"] == 6
    must.run(path, root, steps=Selection("pool.compare_all"))
    monkeypatch.setattr(finetuning, "train_network", end_training)
    monkeypatch.setattr(supervised_baseline, "train_network", end_training)
    for name in ("finetune.student.world", SUPERVISED):
        step, inputs = inputs_of(name, path, Root.of(root))
        with pytest.raises(Trained) as ended:
            step.function()(step.config, inputs, tmp_path / "out")
        assert ended.value.args[0] == {"resized.world"}


def inputs_of(name: str, recipe: Path, root: Root) -> tuple[Step, Inputs]:
    """Return a step, also of a comparison, and its inputs."""
    planned = {each.step.name: each for each in plan_unchecked(read_recipe(recipe), root, Selection(name)).planned}
    step = planned[name].step
    artifacts = {each: artifact for each in step.inputs if (artifact := planned[each].artifact)}
    return step, Inputs(artifacts, Runtime(root, "cpu", "32", 1))


def end_training(network: object, combine: object, dataset: ImageDataset, *rest: object) -> None:
    raise Trained({step_of(shard.images) for shard in dataset.shards})


def step_of(shard: ImageShard) -> str:
    """Return the step whose artifact a shard belongs to."""
    parts = Path(shard.tar.path).parts
    return parts[parts.index("artifacts") + 1] if "work" not in parts else "work"
