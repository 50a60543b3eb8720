"""Supervised teachers: what `trainable` leaves as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from flows.plan.steps import build_steps
from pipeline.errors import ConfigError
from pipeline.recipe.reader import parse_recipe
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root

RECIPE = """
name: heads
data:
  world: {{kind: scenes, count: 8, seed: 2, size: 48, test: 4, tasks: [segmentation]}}
teachers:
  masks: {{kind: supervised, task: segmentation, data: world, backbone: test_resnet, {keys}
    image_size: 32, width: 16, steps: 4, batch: 4, require: none}}
pool: [world]
student: {{backbone: test_resnet, image_size: 32, width: 16}}
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights for the backbone, with running statistics of their own."""
    torch.manual_seed(1)
    tensors = timm.create_model("test_resnet", num_classes=0).state_dict()
    moved = {name: value + 0.25 if "running" in name else value for name, value in tensors.items()}
    save_file(moved, path := tmp_path_factory.mktemp("weights") / "backbone.safetensors")
    return path


def changed(weights: Path, keys: str, root: Path) -> dict[str, set[str]]:
    """Train the teacher; return the names of its backbone's tensors that are as in the file, and of others."""
    tensors = trained(keys, root).load("model.safetensors", load_file)
    before = load_file(weights)
    same = {name for name, value in before.items() if torch.equal(tensors[f"backbone.model.{name}"], value)}
    return {"same": same, "changed": set(before) - same}


def trained(keys: str, root: Path) -> Artifact:
    steps = {step.name: step for step in build_steps(parse_recipe(RECIPE.format(keys=keys), "heads"))}
    workspace, runtime, artifacts = (
        Workspace(Root.of(root)),
        Runtime(Root.of(root), "cpu", "32", 1),
        dict[str, Artifact](),
    )
    for name in ("data.world", "teacher.masks"):
        inputs = {each: artifacts[each] for each in steps[name].inputs}
        artifacts[name], _ = workspace.get_or_make(steps[name], Inputs(inputs, runtime))
    return artifacts["teacher.masks"]


def test_supervised_trainable_heads_leaves_the_backbone_and_its_statistics(weights: Path, tmp_path: Path) -> None:
    keys = f"weights: {weights},"
    assert not changed(weights, f"{keys} trainable: heads,", tmp_path / "heads")["changed"]
    whole = changed(weights, keys, tmp_path / "all")["changed"]
    assert any("running_mean" in name for name in whole)
    assert any("conv" in name for name in whole)


def test_supervised_lists_all_parameters_of_a_frozen_backbone_as_untrained(weights: Path, tmp_path: Path) -> None:
    frozen = trained(f"weights: {weights}, trainable: heads,", tmp_path)
    names = [name for name, _ in timm.create_model("test_resnet", num_classes=0).named_parameters()]
    assert frozen.counts["untrained"] == names


def test_supervised_trainable_heads_needs_weights() -> None:
    with pytest.raises(ConfigError, match="trainable: heads would leave the backbone's random weights"):
        parse_recipe(RECIPE.format(keys="trainable: heads,"), "heads")
