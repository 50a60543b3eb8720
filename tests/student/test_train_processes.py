"""Training steps in several processes: the first one writes the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.steps.artifact import Artifact, Inputs, Step, read_json
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from tasks.network import Network
from tests.processes import Launcher, files

if TYPE_CHECKING:
    from tests.conftest import World


def run(step: Step, artifacts: Mapping[str, Artifact], root: Path, out: Path) -> Mapping[str, Any]:
    """Call a step as a process started by torchrun does."""
    return step.function()(step.config, Inputs(artifacts, Runtime(Root.of(root), "cpu", "32", 1)), out)


@pytest.mark.parametrize("name", ["student", "teacher.masks"])
def test_train_steps_write_and_count_in_first_process_only(
    world: World, launcher: Launcher, tmp_path: Path, name: str
) -> None:
    step = world.steps[name]
    artifacts = dict(world.inputs(name).artifacts)
    counts, nothing = launcher.call(2, run, step, artifacts, world.runtime.root, tmp_path)
    assert nothing == {}
    assert counts["processes"] == 2
    assert counts["images"] > 0
    page = {"student": {"backbone.safetensors", "kept.json"}, "teacher.masks": {"teacher.json"}}[name]
    assert {name for name in files(tmp_path) if not name.startswith("work/")} == {
        *page,
        "model.json",
        "model.safetensors",
        "log/train.jsonl",
    }
    network = Network.load(tmp_path)
    assert set(network.tasks) == set(read_json(tmp_path / "model.json")["heads"])
