"""Fixtures with sets to measure backbones on, each ingested once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.steps.artifact import Artifact
from pipeline.steps.runtime import Runtime
from pipeline.storage.root import Root
from pipeline.training import autotune
from pipeline.training.autotune import ComputeConfig
from tests.evaluation.measuring import COLOURS, Bench, MakeKinds, kinds_in, read_set

TASKS = ["classification", "detection", "segmentation", "depth", "normals"]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Twelve training images with true labels of all five tasks, four validation and five test images."""
    source = {"kind": "scenes", "count": 12, "val": 4, "test": 5, "seed": 4, "size": 48, "tasks": TASKS}
    return read_set(Root.of(tmp_path_factory.mktemp("scenes")), "scenes", **source)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Images of three easy classes: six of each for training, two for validation, three for testing."""
    splits = {"train": range(6), "val": range(10, 12), "test": range(20, 23)}
    pictures = {f"{split}/{kind}": numbers for split, numbers in splits.items() for kind in COLOURS}
    return kinds_in(tmp_path_factory.mktemp("colours"), pictures, "colours")


@pytest.fixture
def make_kinds(tmp_path: Path) -> MakeKinds:
    """Return a function that ingests a set of classes: (image numbers by `<split>/<class>`, name) -> artifact."""
    return lambda pictures, name="kinds": kinds_in(tmp_path, pictures, name)


@pytest.fixture
def bench(scenes: Artifact, colours: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Return a folder to run measuring steps in, without autotuning."""
    monkeypatch.setattr(autotune, "autotune", lambda *_: ComputeConfig("cpu", "32", False, {}))
    runtime = Runtime(Root.of(tmp_path / "bench"), "cpu", "32", 1, checkpoint_s=0)
    return Bench(runtime, {"scenes": scenes, "colours": colours})
