"""Sets that stages train on, and a root where they run."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.plan.steps import build_steps
from pipeline.recipe.reader import parse_recipe
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.runtime import Runtime
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from pipeline.training import autotune
from pipeline.training.autotune import ComputeConfig
from tests.conftest import World
from tests.ingest.photos import picture
from tests.selfsup.sandbox import StageSandbox

KINDS = """
name: kinds
data: {{kinds: {{kind: imagefolder, path: "{path}"}}}}
teachers: {{gabor: {{kind: analytic}}}}
pool: [kinds]
student: {{weighting: equal}}
"""


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An ingested set of eight images of each of two classes."""
    folder = tmp_path_factory.mktemp("kinds")
    for number in range(16):
        file = folder / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(number, 40, 40).save(file)
    [step, *_] = build_steps(parse_recipe(KINDS.format(path=folder / "images"), "kinds"))
    return Workspace(Root.of(folder / "root")).make(step, Inputs({}, Runtime(Root.of(folder / "root"))))


@pytest.fixture
def sandbox(world: World, kinds: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageSandbox:
    monkeypatch.setattr(autotune, "autotune", lambda *_: ComputeConfig("cpu", "32", False, {}))
    sets = {name: made for name, made in world.artifacts.items() if name.startswith("data.")}
    runtime = Runtime(Root.of(tmp_path / "root"), "cpu", "32", 1, checkpoint_s=0)
    return StageSandbox({**sets, "data.kinds": kinds}, runtime)
